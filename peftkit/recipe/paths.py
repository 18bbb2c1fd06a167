"""Find the file names in a recipe, and tie them to the folder they were written in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Names = tuple[str, ...]

_MODELS: frozenset[Names] = frozenset({("base", "model"), ("base",)})
"""In a recipe, and in a merge."""
_ADAPTERS: Names = ("adapters",)
"""Of a merge: whatever name is below it stands for a place."""
_TASKS: Names = ("evaluate", "tasks")
"""Of a merge: below it stand sources by name."""
_UNDER: Names = ("adapter", "under")
_STAGES: Names = ("stages",)
"""Keys of a stage mean what they mean at the top."""
_REGULARIZE: Names = ("train", "regularize")
_SOURCES: frozenset[Names] = frozenset(
    {
        ("data", "train"),
        ("data", "validation"),
        ("data", "test"),
        ("data", "benchmarks"),
        ("data", "replay"),
        ("evaluate", "remember"),
        ("evaluate", "ood"),
        ("evaluate", "control"),
    }
)
"""Keys that hold sources, each written as a path, as `{source: path}` or as a list of these."""


def anchor(value: Any, folder: Path, at: Names = ()) -> Any:
    """The same values with every relative path made absolute from `folder`.

    `at` says which keys lead to `value`, when it is only a part of a recipe.
    """
    return map_paths(value, folder, lambda path: absolute(path, folder), at)


def absolute(path: str, folder: Path) -> str:
    """`path` seen from `folder`, normalized; links keep their names, whose endings matter."""
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:  # `~someone` where there is no such user: a name like any other
        expanded = Path(path)
    return os.path.normpath(folder.absolute() / expanded)


def map_paths(value: Any, folder: Path, move: Callable[[str], str], at: Names = ()) -> Any:
    """The same values with `move` applied to every text that names a file or folder."""
    if isinstance(value, dict):
        return {key: map_paths(child, folder, move, (*at, key)) for key, child in value.items()}
    if isinstance(value, tuple | list):
        return tuple(map_paths(child, folder, move, at) for child in value)
    if isinstance(value, str) and _is_path(value, folder, at):
        return move(value)
    return value


def _is_path(text: str, folder: Path, at: Names) -> bool:
    if not text or text.startswith(("hub:", "builtin:")) or "://" in text:
        return False
    at = at[1:] if at[:1] == _STAGES else at
    if at in _MODELS:
        return text != "auto" and names_a_folder(text, folder)
    if at == _UNDER:
        return text != "none"
    if at[:2] == _REGULARIZE:
        return at[3:] == ("source",)
    if at[:-1] == _ADAPTERS or at[:2] == _TASKS:
        return at[:-1] in (_ADAPTERS, _TASKS) or at[3:] == ("source",)
    return at[:2] in _SOURCES and set(at[2:]) <= {"source", "sources"}


def names_a_folder(model: str, folder: Path) -> bool:
    """Whether `base.model` is a folder; `org/name` is a hub id unless such a folder is here."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or _is_folder(folder / model)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than the file system allows
        return False
