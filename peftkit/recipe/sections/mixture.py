"""The `data.mixture` section: how much of a run each training source is, and what an epoch is."""

from typing import Literal

from peftkit.recipe.sections.section import PositiveNumber, Section

Origin = Literal["human", "weak", "generated", "unknown"]
"""Who wrote the rows of a source: people, a rule or weak labels, or a model."""


class MixtureSection(Section):
    """Shares of the training sources, where they are not simply shuffled together."""

    by: Literal["tokens", "rows"] = "tokens"
    """What a share is of: the tokens that are read, or the rows."""
    temperature: PositiveNumber = 1.0
    """Without weights, a source of n has a share ∝ n^(1/T); 1 takes each row once an epoch."""
    epoch: Literal["all", "first"] = "all"
    """An epoch ends when `all` sources were seen whole, or the `first`; others start over."""
