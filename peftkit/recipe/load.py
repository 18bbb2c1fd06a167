"""Read a recipe file: YAML text in, a validated `Recipe` out, or every problem at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from peftkit.errors import RecipeError
from peftkit.recipe.catalog import name_of
from peftkit.recipe.files import is_there
from peftkit.recipe.layers import Layer, read_chain, stack
from peftkit.recipe.overrides import override
from peftkit.recipe.quantized import spell_out
from peftkit.recipe.schema import Recipe
from peftkit.recipe.spelling import nearest
from peftkit.recipe.stages import spell_out_stages, spread
from peftkit.recipe.suggest import explain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe, where it was read and what it said."""

    recipe: Recipe
    """Every default filled in, every path absolute."""
    path: Path
    """As it was given."""
    text: str
    """The file as written."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check the recipe at `path`, with each `key=value` of `overrides` laid over it.

    Raises:
        RecipeError: the file is missing, is not YAML, or says something a recipe cannot.
    """
    if not is_there(path):
        raise RecipeError(f"no recipe at {path}", hint=_instead_of(path))
    chain = read_chain(path)
    written = override(stack(chain), overrides)
    named = spread(Layer({"name": _name(path), **written.values}, written.origins))
    try:
        recipe = Recipe.model_validate(spell_out_stages(spell_out(named.values)))
    except ValidationError as error:
        problems, hint = explain(error, named)
        raise RecipeError(f"{path} is not a valid recipe", problems=problems, hint=hint) from None
    return LoadedRecipe(recipe, path, chain[0].document.text)


def _name(path: Path) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-")[:96]
    return cleaned or "recipe"


def _instead_of(path: Path) -> str:
    if name := name_of(path):
        return f"`peftkit recipes copy {name} .` gives you the recipe of that name"
    if close := nearest(path.name, [other.name for other in path.parent.glob("*.yaml")]):
        return f"did you mean `{path.with_name(close)}`?"
    return "`peftkit recipes list` shows the recipes that ship"
