"""The run folder: the files in it, and how they are written. The only module that writes there."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.disk.durable import explained, free_bytes, sync, write_whole
from peftkit.disk.size import show_bytes
from peftkit.errors import InputError, WriteError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STEPS = "steps.jsonl"
EVALUATIONS = "evaluations.jsonl"
UNFREEZING = "unfreezing.json"
FINDER = "finder.json"
PAGE = "report.html"
"""Written after everything else, so that its being there says that the run came to its end."""
RECORDS = ("metrics.json", "samples.json", "findings.json")
"""Also there by then; the page alone may have been rebuilt for a run that was cut short."""
ROWS = "rows"
"""Rows that were given from Python; `clear` leaves them, as the next run may be of the same."""
PAGES_BYTES = 4 * 2**20
"""Room for everything in a run folder but weights: reports, logs, samples, what was decided."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder, with a name for every file in it."""

    path: Path

    @property
    def adapter(self) -> Path:
        """Where the finished adapter goes."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of an unfinished run are."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run that this folder holds came to its end."""
        return all((self.path / name).exists() for name in (*RECORDS, PAGE))

    def write(self, name: str, content: str | Mapping[str, Any] | list[Any]) -> Path:
        """Write one file, whole or not at all; anything but text becomes JSON."""
        text = content if isinstance(content, str) else _as_json(content)
        write_whole(self.path / name, text)
        return self.path / name

    def read(self, name: str) -> Any:
        """What a JSON file of the run says, or None where it was never written."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as problem:
            raise InputError(
                f"`{path}` is damaged: {problem}",
                hint="`peftkit finetune RECIPE --fresh` starts over in this folder",
            ) from None

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Add one line to a .jsonl file, in place of a half-written last one."""
        path = self.path / name
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        with explained(path, len(content)), path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            if end and file.read() != b"\n":
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
            file.write(content)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a .jsonl file, up to the first that was not written whole."""
        path = self.path / name
        if not path.exists():
            return []
        found = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError, RecursionError):
                break
        return found

    def keep_lines(self) -> None:
        """Make the lines appended so far reach the disk, before a checkpoint counts on them."""
        for name in (STEPS, EVALUATIONS):
            path = self.path / name
            if path.exists():
                with explained(path):
                    sync(path)

    def forget_after(self, step: int, *, evaluated: int) -> None:
        """Drop the lines of steps, and of evaluations, that a resumed run will add again."""
        for name, last in ((STEPS, step), (EVALUATIONS, evaluated)):
            kept = [line for line in self.lines(name) if line["step"] <= last]
            self.write(name, "".join(json.dumps(line) + "\n" for line in kept))

    def reopen(self) -> None:
        """Take back that the run came to its end, because it is to go on."""
        with explained(self.path / PAGE):
            (self.path / PAGE).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove an earlier run's files, and only those that a run writes."""
        with explained(self.path):
            for name in OWN_FOLDERS:
                if (self.path / name).is_dir():
                    shutil.rmtree(self.path / name)
            for name in OWN_FILES:
                (self.path / name).unlink(missing_ok=True)
            self.sweep()

    def sweep(self) -> None:
        """Remove what killed processes left half-written."""
        names = (*OWN_FILES, *OWN_FOLDERS, "adapter/README.md", "checkpoints/step-*")
        for leftover in [path for name in names for path in self.path.glob(f"{name}.tmp-*")]:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with suppress(OSError):
                    leftover.unlink()


OWN_FOLDERS = ("checkpoints", "adapter", "stages")
"""Cleared in this order, so that no checkpoint outlives the files that say what it is of."""
OWN_FILES = (
    "recipe.yaml",
    "recipe.resolved.json",
    "lock.json",
    "plan.json",
    "data.json",
    "split.json",
    STEPS,
    EVALUATIONS,
    "metrics.json",
    "findings.json",
    "samples.json",
    UNFREEZING,
    FINDER,
    "report.html",
    "report.md",
)


def check_space(run: RunFolder, needed: int) -> None:
    """Refuse to start a run whose checkpoints, adapter and pages will not fit.

    Args:
        run: the folder; what an earlier part of the run has saved in it needs no new room.
        needed: bytes that checkpoints and adapter take at most.
    """
    saved = [path for folder in (run.checkpoints, run.adapter) for path in folder.rglob("*")]
    held = sum(path.stat().st_size for path in saved if path.is_file())
    wanted, free = max(needed - held, 0) + PAGES_BYTES, free_bytes(run.path)
    if free < wanted:
        raise WriteError(
            f"`{run.path}` needs {show_bytes(wanted)} for checkpoints, adapter and report, and "
            f"{show_bytes(free)} are free",
            hint="make room, lower `train.keep`, or give another `--out DIR`",
        )


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
