"""Rows given from Python, written down once as files, so that each has a name and a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftkit.disk.durable import explained, make_folder, sync
from peftkit.errors import InputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SETS = ("train", "validation", "test")
NOT_YET = "rows.jsonl"
"""Stands for the file in a recipe that is read before the rows are."""


def refuse_other_sets(given: Iterable[str]) -> None:
    """Stop at a name that no set has, before anything is read or written."""
    for name in given:
        if name not in SETS:
            raise RecipeError(f"rows: `{name}` is no set of rows; expected {', '.join(SETS)}")


def write_sets(folder: Path, given: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, Path]:
    """The file of each set; its name tells the content, so that other rows have another one.

    Raises:
        InputError: a row is no mapping of names to what JSON holds.
        WriteError: there is no room.
    """
    with explained(folder):
        make_folder(folder)
        return {name: _write(folder, name, rows) for name, rows in given.items()}


def _write(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    building = folder / f"{name}.tmp"
    total = hashlib.sha256()
    try:
        with building.open("wb") as file:
            for line in _lines(name, rows):
                total.update(line)
                file.write(line)
        path = folder / f"{name}-{total.hexdigest()[:12]}.jsonl"
        sync(building)
        building.replace(path)
        sync(folder)
    finally:
        building.unlink(missing_ok=True)
    return path


def _lines(name: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    if isinstance(rows, str | bytes | Mapping):
        raise InputError(f"rows[`{name}`]: expected rows, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        where = f"rows[`{name}`], row {number}"
        if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
            raise InputError(f"{where}: expected names with values, got `{str(row)[:40]}`")
        try:
            line = json.dumps(dict(row), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as problem:
            raise InputError(f"{where}: {str(problem).lower()}; expected what JSON holds") from None
        yield line.encode() + b"\n"
