"""Read a recipe file: YAML text in, a validated model of it out, or every problem at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ValidationError

from peftkit.errors import RecipeError
from peftkit.recipe.catalog import name_of
from peftkit.recipe.files import is_there
from peftkit.recipe.kinds import MERGE, RECIPE
from peftkit.recipe.layers import Layer, Origin, read_chain, stack
from peftkit.recipe.merge_schema import MergeRecipe
from peftkit.recipe.overrides import override
from peftkit.recipe.paths import anchor
from peftkit.recipe.quantized import spell_out
from peftkit.recipe.schema import Recipe
from peftkit.recipe.spelling import nearest
from peftkit.recipe.stages import spell_out_stages, spread
from peftkit.recipe.suggest import explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.recipe.kinds import Kind
    from peftkit.recipe.strict_yaml import Location


Root = TypeVar("Root", Recipe, MergeRecipe)


@dataclass(frozen=True)
class Loaded(Generic[Root]):
    """A valid document, where it was read and what it said."""

    recipe: Root
    """Every default filled in, every path absolute."""
    path: Path
    """As it was given."""
    text: str
    """The file as written."""


LoadedRecipe = Loaded[Recipe]
LoadedMerge = Loaded[MergeRecipe]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check the recipe at `path`, with each `key=value` of `overrides` laid over it.

    Raises:
        RecipeError: the file is missing, is not YAML, or says something a recipe cannot.
    """
    written, text = _read(path, overrides, RECIPE)
    return Loaded(_checked(Recipe, written, f"{path} is not a valid recipe", RECIPE), path, text)


def load_merge(path: Path, overrides: Sequence[str] = ()) -> LoadedMerge:
    """Read and check the merge at `path`, with each `key=value` of `overrides` laid over it.

    Raises:
        RecipeError: the file is missing, is not YAML, or says something a merge cannot.
    """
    written, text = _read(path, overrides, MERGE)
    told = f"{path} is not a valid merge recipe"
    return Loaded(_checked(MergeRecipe, written, told, MERGE), path, text)


def load_any(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe | LoadedMerge:
    """Read and check what is at `path`: where it has a formula it is a merge, else a recipe.

    Raises:
        RecipeError: it is neither.
    """
    written, _ = _read(path, overrides, RECIPE)
    is_merge = "expression" in written.values and "data" not in written.values
    return load_merge(path, overrides) if is_merge else load_recipe(path, overrides)


def make_merge(
    values: Mapping[str, Any], options: Mapping[Location, str], overrides: Sequence[str] = ()
) -> MergeRecipe:
    """A merge that was typed as options, checked like one from a file.

    Args:
        values: as a file would have them.
        options: the words that messages name a place by, such as `--rank`.
        overrides: each `key=value`, laid over it.

    Raises:
        RecipeError: it says something that a merge cannot.
    """
    places = {key: Origin(0, 1, label) for key, label in options.items()}
    folder = Path()
    written = override(Layer(anchor(dict(values), folder), {(): Origin(), **places}), overrides)
    return _checked(MergeRecipe, written, "this cannot be merged", MERGE)


def _read(path: Path, overrides: Sequence[str], kind: Kind) -> tuple[Layer, str]:
    if not is_there(path):
        raise RecipeError(f"no {kind.called} at {path}", hint=_instead_of(path))
    chain = read_chain(path)
    written = override(stack(chain), overrides)
    named = Layer({"name": _name(path), **written.values}, written.origins)
    return spread(named), chain[0].document.text


def _checked(schema: type[Root], written: Layer, refusal: str, kind: Kind) -> Root:
    values = written.values
    try:
        if kind is RECIPE:
            values = spell_out_stages(spell_out(values))
        return schema.model_validate(values)
    except ValidationError as error:
        problems, hint = explain(error, written, kind)
        raise RecipeError(refusal, problems=problems, hint=hint) from None


def _name(path: Path) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-")[:96]
    return cleaned or "recipe"


def _instead_of(path: Path) -> str:
    if name := name_of(path):
        return f"`peftkit recipes copy {name} .` gives you the recipe of that name"
    if close := nearest(path.name, [other.name for other in path.parent.glob("*.yaml")]):
        return f"did you mean `{path.with_name(close)}`?"
    return "`peftkit recipes list` shows the recipes that ship"
