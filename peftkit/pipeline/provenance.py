"""What a merge says of itself, so that anyone with its parents can make it again, byte for byte.

Nothing in it depends on the machine or on the day: places are told from the folder of the result.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit import __version__
from peftkit.base.machine import describe_versions
from peftkit.disk.durable import write_whole
from peftkit.errors import InputError
from peftkit.merge.model_files import MERGE_FILE
from peftkit.merge.parents import base_facts
from peftkit.recipe.paths import map_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.merge.parents import Parent
    from peftkit.recipe.merge_schema import MergeRecipe

DIGITS = 6
"""Of the figures that are kept: other libraries add up in another order."""
AS_RECORDED = ("recipe", "evaluation", "search")
"""Parts that a merge which is made again takes over as they are."""


def record(
    recipe: MergeRecipe,
    parents: tuple[Parent, ...],
    weights: Mapping[str, float],
    figures: Mapping[str, Any],
    out: Path,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `merge.json` says beside what was written.

    Args:
        recipe: resolved.
        parents: what goes in.
        weights: the numbers of the formula, or those that were found.
        figures: of the preflight.
        out: where it will be.
        earlier: what an earlier result says, of which this is the same again.
    """
    at = {each.name: _seen_from(out, str(each.folder)) for each in parents}
    if earlier is not None:
        at = {str(each["name"]): str(each["at"]) for each in earlier["parents"]}
    base = next((each.base for each in parents if each.base), None)
    named = base if recipe.base == "auto" else recipe.base
    facts = base_facts(named, parents)
    said = {
        "name": recipe.name,
        "expression": recipe.expression,
        "weights": dict(weights),
        "seed": recipe.seed,
        "base": facts | {"name": None if named is None else _seen_from(out, named)},
        "parents": [
            {
                "name": each.name,
                "at": at[each.name],
                "digest": each.digest,
                "files": dict(each.files),
                "revision": each.revision,
                "base_digest": each.base_digest,
            }
            for each in parents
        ],
        "recipe": _portable(recipe, out),
        "versions": {"peftkit": __version__} | describe_versions(),
        "preflight": _rounded(figures),
    }
    if earlier is not None:
        said |= {key: value for key, value in earlier.items() if key in AS_RECORDED}
        was = earlier["base"]
        known = facts["digest"] if None not in (facts["digest"], was["digest"]) else was["digest"]
        said["base"] = facts | {"name": was["name"], "digest": known}
    return said


def read_record(folder: Path) -> dict[str, Any]:
    """What a merge says of itself.

    Raises:
        InputError: it says nothing, or not enough to make it again.
    """
    path = folder / MERGE_FILE
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"`{folder}` holds no merge: it has no {MERGE_FILE}",
            hint="give the folder that `peftkit merge` wrote",
        ) from None
    except (OSError, ValueError, RecursionError) as problem:
        raise InputError(f"`{path}` cannot be read: {problem}") from None
    if not isinstance(said, dict) or not {"recipe", "parents", "weights"} <= said.keys():
        raise InputError(
            f"`{path}` does not say how it was made",
            hint="sums that were saved from Python only say what they are made of",
        )
    return said


def add_to_record(folder: Path, key: str, value: Any) -> None:
    """Let a merge say more of itself, such as its `evaluation`, and no less than before."""
    path = folder / MERGE_FILE
    said = json.loads(path.read_text(encoding="utf-8"))
    write_whole(path, json.dumps(said | {key: value}, indent=2) + "\n")


def _portable(recipe: MergeRecipe, out: Path) -> dict[str, Any]:
    """The recipe with places as they are seen from the result."""
    said = recipe.model_dump(mode="json")
    placed = map_paths(said, Path(), lambda path: _seen_from(out, path))
    found: dict[str, Any] = json.loads(json.dumps(placed))  # tuples become lists, as in a file
    return found


def _seen_from(out: Path, path: str) -> str:
    if not Path(path).is_absolute():
        return path
    return Path(os.path.relpath(path, out.absolute())).as_posix()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
