"""The run folder: who may write it, and the files in it. The only module that writes there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.errors import BusyError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

STEPS = "steps.jsonl"
EVALUATIONS = "evaluations.jsonl"


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
        last = self.adapter / "README.md"  # the card, which is written after everything else
        return last.exists() and (self.path / "metrics.json").exists()

    def write(self, name: str, content: str | Mapping[str, Any] | list[Any]) -> Path:
        """Write one file, whole or not at all; anything but text becomes JSON."""
        text = content if isinstance(content, str) else _as_json(content)
        final = self.path / name
        building = final.with_name(f".{final.name}.tmp-{os.getpid()}")
        final.parent.mkdir(parents=True, exist_ok=True)
        building.write_text(text, encoding="utf-8")
        building.replace(final)
        return final

    def read(self, name: str) -> Any:
        """What a JSON file of the run says, or None where it was never written."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Add one line to a .jsonl file."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a .jsonl file; a half-written last one does not count."""
        path = self.path / name
        if not path.exists():
            return []
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in whole]

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will take again."""
        for name in (STEPS, EVALUATIONS):
            kept = [line for line in self.lines(name) if line["step"] <= step]
            self.write(name, "".join(json.dumps(line) + "\n" for line in kept))

    def clear(self) -> None:
        """Remove an earlier run's files, and only those that a run writes."""
        for child in self.path.iterdir():
            if child.name in OWN_FOLDERS and child.is_dir():
                shutil.rmtree(child)
            elif child.name in OWN_FILES:
                child.unlink()


OWN_FOLDERS = ("adapter", "checkpoints", "stages")
OWN_FILES = (
    "recipe.yaml",
    "recipe.resolved.json",
    "lock.json",
    "plan.json",
    "data.json",
    STEPS,
    EVALUATIONS,
    "metrics.json",
    "findings.json",
    "samples.json",
    "report.html",
    "report.md",
)


@contextmanager
def hold(path: Path) -> Iterator[RunFolder]:
    """The run folder at `path`, made if needed, held against every other live run.

    The operating system lets go of the lock when the process ends, however it ends, so there are
    no stale locks to reclaim.
    """
    _make_writable(path)
    name = path / ".lock"
    with name.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BusyError(
                f"`{path}` is in use by a live run ({holder})",
                hint="wait for it, stop it, or give this run a folder of its own: `--out DIR`",
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield RunFolder(path)


def _make_writable(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise WriteError(f"`{path}` is a file; a run needs a folder", hint="`--out DIR`")
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as problem:
        raise WriteError(
            f"cannot write to `{path}`: {(problem.strerror or str(problem)).lower()}",
            hint="give a folder you may write to: `--out DIR`",
        ) from None


def check_space(path: Path, needed: int) -> None:
    """Refuse to start a run whose checkpoints will not fit."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise WriteError(
            f"`{path}` needs {needed / 2**20:.0f} MiB for checkpoints and has {free / 2**20:.0f}",
            hint="free some space, lower `train.keep`, or give another `--out DIR`",
        )


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
