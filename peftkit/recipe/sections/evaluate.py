"""The `evaluate` section: how good it is, compared with what, and on which rows."""

from typing import Annotated, Literal

from pydantic import Field

from peftkit.recipe.sections.data import Sources
from peftkit.recipe.sections.section import Auto, Count, Section


class EvaluateSection(Section):
    """What is measured before, during and after training."""

    every: Count = 100
    """Steps between validation losses while training."""
    metrics: Auto | tuple[Literal["loss", "exact_match"], ...] = "auto"
    """`auto` adds exact match where rows have a prompt and a short answer."""
    baselines: Annotated[tuple[Literal["base"], ...], Field(min_length=1)] = ("base",)
    """What the adapted model is compared with, on the same rows."""
    remember: Sources = ()
    """General text that must not be forgotten: measured before and after."""
    rows: Count = 512
    """At most this many rows of each set are evaluated; the same ones every time."""
    samples: Count = 8
    """Generations shown in the report, before and after."""
