"""A merge made again from what it says of itself, and compared with what is there by byte."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.disk.digest import sha256_of
from peftkit.errors import InputError, RecipeError
from peftkit.merge.model_files import MERGE_FILE
from peftkit.merge.parents import find_parent
from peftkit.pipeline.merge import merge
from peftkit.pipeline.provenance import read_record
from peftkit.recipe.load import make_merge
from peftkit.recipe.paths import absolute, map_paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from peftkit.recipe.merge_schema import MergeRecipe


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What was made again, and how it compares."""

    files: dict[str, bool]
    """Whether each file that a merge writes is the same."""
    differences: tuple[str, ...]
    """What differs, in words."""
    out: Path | None

    @property
    def identical(self) -> bool:
        """Whether all of it is."""
        return all(self.files.values())


def reproduce(
    folder: Path, moved: Mapping[str, str], out: Path | None = None, *, base: str | None = None
) -> Reproduced:
    """Make a merge again from its parents, and compare every file that it writes.

    Args:
        folder: of the merge.
        moved: where parents are that are no longer where they were, by their names.
        out: a folder to keep the new one in.
        base: where the base is, if it is no longer where it was.

    Raises:
        RecipeError: a parent is not there.
        InputError: the record cannot be read, or a parent is not what it was.
    """
    said = read_record(folder)
    recipe = _recipe(folder, said, moved, base)
    _refuse_changed(said, recipe)
    with tempfile.TemporaryDirectory(prefix="peftkit-reproduce-") as place:
        made = Path(place) / "merged" if out is None else out
        merge(recipe, made, earlier=said)
        files = {
            path.name: (folder / path.name).is_file()
            and sha256_of(path) == sha256_of(folder / path.name)
            for path in sorted(made.iterdir())
        }
        differences = tuple(_differences(files, said, read_record(made)))
    return Reproduced(files, differences, out)


def _recipe(
    folder: Path, said: Mapping[str, Any], moved: Mapping[str, str], base: str | None
) -> MergeRecipe:
    """The recipe of the record, its places seen from here."""
    values = map_paths(said["recipe"], folder, lambda path: absolute(path, folder))
    adapters = {str(each["name"]): absolute(str(each["at"]), folder) for each in said["parents"]}
    if unknown := [name for name in moved if name not in adapters]:
        raise RecipeError(
            f"`--adapter {unknown[0]}=...`: the merge has no such parent",
            hint=f"it has {', '.join(f'`{name}`' for name in adapters)}",
        )
    adapters |= moved
    for name, path in adapters.items():
        if not Path(path).exists():
            raise RecipeError(
                f"`{name}` is no longer at `{path}`",
                hint=f"say where it is now: `--adapter {name}=PATH`",
            )
    values |= {"adapters": adapters, "search": None} | ({"base": base} if base else {})
    return make_merge(values, {("adapters", name): f"--adapter {name}" for name in adapters})


def _refuse_changed(said: Mapping[str, Any], recipe: MergeRecipe) -> None:
    problems = []
    for each in said["parents"]:
        name = str(each["name"])
        now = find_parent(name, recipe.adapters[name])
        if now.digest != each["digest"]:
            was = each["files"]
            changed = [f for f in {**was, **now.files} if was.get(f) != now.files.get(f)]
            shown = f" ({', '.join(changed)})" if changed else ""
            problems.append(
                f"`{name}`: sha256 {str(each['digest'])[:12]}… -> {now.digest[:12]}…{shown}"
            )
    if problems:
        raise InputError(
            "it cannot be made again: parents are not what they were",
            problems=problems,
            hint="`--adapter NAME=PATH` names the one that it was made of",
        )


def _differences(
    files: Mapping[str, bool], was: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[str]:
    for name, same in files.items():
        if not same and name != MERGE_FILE:
            yield f"{name}: other bytes"
    if files.get(MERGE_FILE):
        return
    told = False
    for key in dict.fromkeys((*was, *now)):
        if was.get(key) != now.get(key):
            told = True
            yield f"{MERGE_FILE}: {key}: {_short(was.get(key), now.get(key))}"
    if not told:
        yield f"{MERGE_FILE}: written otherwise"


def _short(was: Any, now: Any) -> str:
    """The innermost things that differ, or just that they do."""
    if isinstance(was, dict) and isinstance(now, dict):
        changed = [key for key in dict.fromkeys((*was, *now)) if was.get(key) != now.get(key)]
        inner = [f"{key} {_short(was.get(key), now.get(key))}" for key in changed[:3]]
        return ", ".join(inner)
    return f"{_brief(was)} -> {_brief(now)}"


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
