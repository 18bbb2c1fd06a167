"""Adapter folders as they lie on disk: found, told apart by digest, and what each stands on.

Nothing here knows peft, whose import takes longer than what is asked of a folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.adapters.task_file import TASK_FILE
from peftkit.adapters.verify import ADAPTER_NAME, CONFIG_FILE, DELTA_FILE, WEIGHTS_FILE
from peftkit.disk.digest import sha256_of
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.adapter import NOTHING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOTE = "under.json"
"""Which adapter stands under the one that is saved."""
STAGES = "stages"
"""The folder of a run in which each of its stages has one."""
NOT_DECIDING = ("base_model_name_or_path", "revision", "peft_version")
"""Keys of a configuration that change nothing of what an adapter does."""
DEEPEST = 16
"""Adapters above each other; more is taken for a circle."""


def find_adapter(name: str) -> Path:
    """The folder of an adapter, given it or its run.

    Raises:
        RecipeError: there is none.
    """
    folder = Path(name).expanduser()
    inner = folder / "adapter"
    found = inner if (inner / CONFIG_FILE).exists() else folder
    if not (found / CONFIG_FILE).exists():
        raise RecipeError(
            f"`{name}` is not an adapter: it has no {CONFIG_FILE}",
            hint="give a run folder or its `adapter` folder",
        )
    return found


def expand(folder: Path, known: Sequence[str] = ()) -> list[Path]:
    """The folder behind those that it was trained above, but for those of a `known` digest.

    Raises:
        InputError: one of them is not where its run says, or is no longer what it was.
    """
    folders = [folder]
    while (note := read_note(folders[0])) is not None and note["sha256"] not in known:
        if len(folders) == DEEPEST:
            raise InputError(f"`{folder}`: more than {DEEPEST} adapters stand above each other")
        folders.insert(0, _find_noted(folders[0], note))
    return folders


def read_note(folder: Path) -> dict[str, Any] | None:
    """What an adapter folder says of the one under it; None where it was trained on the base.

    Raises:
        InputError: the note cannot be read.
    """
    path = folder / NOTE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {
            "name": str(values["name"]),
            "sha256": str(values["sha256"]),
            "folded": values.get("folded") is True,
        }
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise InputError(f"`{path}` is not what was written: {problem!r}") from None


def _find_noted(folder: Path, note: Mapping[str, str]) -> Path:
    """Where the adapter under `folder` lies, as the recipe of its run says."""
    what = f"`{folder}` was trained above another adapter, `{note['name']}`"
    hint = f"`peftkit generate BASE --adapter PATH --adapter {folder}`, PATH being that adapter's"
    places = [place for place in (_named_by_run(folder), _beside(folder, note["name"])) if place]
    if not places:
        raise InputError(f"{what}, and there is no run beside it that says where", hint=hint)
    folders = [each for place in places for each in (place / "adapter", place)]
    there = [each for each in folders if (each / CONFIG_FILE).exists()]
    if not there:
        raise InputError(f"{what}, which is no longer at `{places[0]}`", hint=hint)
    if found := next((each for each in there if digest_of(each) == note["sha256"]), None):
        return found
    raise InputError(
        f"{what}, and `{places[0]}` now holds another one",
        hint=f"train it anew with `peftkit finetune`, or put that one back: {note['sha256']}",
    )


def _named_by_run(folder: Path) -> Path | None:
    """Where the run of an adapter says that what it stands on lies."""
    try:
        text = (folder.parent / "recipe.resolved.json").read_text(encoding="utf-8")
        section = json.loads(text)["adapter"]
        named = section["under"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(named, str) or named == NOTHING:
        return None
    if section.get("under_as") == "continued":  # then it stands on what that one stood on
        return _named_by_run(Path(named) / "adapter")
    return Path(named)


def _beside(folder: Path, name: str) -> Path | None:
    """Where a stage of the same run lies, which may have been moved as a whole."""
    run = folder.parent
    stages = run.parent if run.parent.name == STAGES else run / STAGES
    return stages / name if ADAPTER_NAME.fullmatch(name) and (stages / name).is_dir() else None


def digest_of(folder: Path) -> str:
    """Digest of weights, configuration and task; of what is there, for loading says what is not.

    The name of the base and the version of peft in the configuration do not count.
    """
    total = hashlib.sha256()
    for path in (folder / name for name in (WEIGHTS_FILE, DELTA_FILE, TASK_FILE)):
        if path.is_file():
            total.update(f"{path.name} {sha256_of(path)}\n".encode())
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return total.hexdigest()
    if isinstance(values, dict):
        said = {key: value for key, value in values.items() if key not in NOT_DECIDING}
        total.update(json.dumps(said, sort_keys=True).encode())
    return total.hexdigest()
