"""The kinds of documents that people write, and what messages say of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.recipe import other_tools
from peftkit.recipe.merge_schema import MergeRecipe
from peftkit.recipe.schema import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.recipe.sections.section import Section


@dataclass(frozen=True, slots=True)
class Kind:
    """One of them."""

    schema: type[Section]
    called: str
    command: str
    """What runs it."""
    explained: str
    """What explains its keys."""
    habits: Mapping[str, str]
    """Keys that other tools have, and ours."""
    advice: Mapping[str, str]
    """Keys that have no place in it, and what to do instead."""


RECIPE = Kind(
    Recipe,
    "recipe",
    "peftkit finetune",
    "peftkit schema",
    other_tools.KEYS,
    other_tools.ADVICE,
)
MERGE = Kind(
    MergeRecipe,
    "merge recipe",
    "peftkit merge",
    "peftkit schema --merge",
    other_tools.MERGE_KEYS,
    other_tools.MERGE_ADVICE,
)
