"""What each entry-wise method may be told, and the steps that it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from peftkit.merge.methods.consensus import Consensus, Elect, WeightedSum
from peftkit.merge.methods.coordinates import merge_coordinates
from peftkit.merge.methods.entry_wise import Steps
from peftkit.merge.methods.parameters import NoParameters, Parameters, Scaled, number
from peftkit.merge.methods.sce import SelectCalculateErase
from peftkit.merge.methods.thin import Dropped, Largest, Ranked, Scope, Whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peftkit.merge.methods.core import Pair
    from peftkit.merge.methods.in_core import Factored
    from peftkit.merge.methods.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Sum(Parameters):
    """A weighted sum, or a weighted mean."""

    normalize: bool = False
    """Divide the weights by their sum."""


@dataclass(frozen=True, slots=True)
class Kept(Parameters):
    """How much of each change is kept, where nothing else is open."""

    keep: float = number(0.2, least=0, most=1)
    """Share of the entries."""
    scaling: float = number(1.0)


@dataclass(frozen=True, slots=True)
class Ties(Parameters):
    """How changes are trimmed, how signs are elected, and what becomes of those that agree."""

    keep: float = number(0.2, least=0, most=1)
    """Share of the entries that is kept, the largest."""
    scope: Scope = "model"
    """Where the largest are sought: in the whole model, in each tensor, in each row."""
    elect: Elect = field(default_factory=Elect)
    combine: Literal["mean", "sum", "weighted_mean"] = "mean"
    scaling: float = number(1.0)


@dataclass(frozen=True, slots=True)
class Magnitude(Parameters):
    """How much of each change is kept, and where the largest entries are sought."""

    keep: float = number(0.2, least=0, most=1)
    scope: Scope = "tensor"
    scaling: float = number(1.0)


@dataclass(frozen=True, slots=True)
class Breadcrumbs(Parameters):
    """How much of each change is kept between outliers and noise."""

    keep: float = number(0.15, least=0, most=1)
    top: float = number(0.01, least=0, most=1)
    """Share of the entries that is too large; fewer where `keep` leaves no room."""
    scope: Scope = "tensor"
    scaling: float = number(1.0)


@dataclass(frozen=True, slots=True)
class Dare(Parameters):
    """How many entries are kept by chance."""

    keep: float = number(0.5, above=0, most=1)
    """Probability of each entry."""
    seed: int = number(0, least=0)
    scaling: float = number(1.0)


@dataclass(frozen=True, slots=True)
class DareTies(Parameters):
    """How many entries are kept by chance, and how signs are elected among them."""

    keep: float = number(0.5, above=0, most=1)
    seed: int = number(0, least=0)
    elect: Elect = field(default_factory=Elect)
    combine: Literal["mean", "sum", "weighted_mean"] = "mean"
    scaling: float = number(1.0)


@dataclass(frozen=True, slots=True)
class Della(Parameters):
    """How many entries are kept by chance, and how much more likely the large ones are."""

    keep: float = number(0.5, above=0, most=1)
    """Mean probability of the entries of a row."""
    window: float = number(0.2, least=0, most=1)
    """From the probability of a row's smallest entry to that of its largest."""
    seed: int = number(0, least=0)
    elect: Elect = field(default_factory=Elect)
    combine: Literal["mean", "sum", "weighted_mean"] = "mean"
    scaling: float = number(1.0)


@dataclass(frozen=True, slots=True)
class DellaLinear(Parameters):
    """How many entries are kept by chance, and how much more likely the large ones are."""

    keep: float = number(0.5, above=0, most=1)
    window: float = number(0.2, least=0, most=1)
    seed: int = number(0, least=0)
    scaling: float = number(1.0)


@dataclass(frozen=True, slots=True)
class Sce(Parameters):
    """How many entries are selected."""

    keep: float = number(0.1, least=0, most=1)
    """Share of the entries of each tensor: those that differ most between the changes."""
    scaling: float = number(1.0)


def add_up(told: Sum) -> Steps:
    """Every change times its weight."""
    return Steps(Whole(), WeightedSum(told.normalize))


def scale_sum(told: Scaled) -> Steps:
    """The weighted sum, scaled."""
    return Steps(Whole(), WeightedSum(), told.scaling)


def ties(told: Ties) -> Steps:
    """Trim, elect a sign, merge what agrees."""
    consensus = Consensus(told.combine, told.elect)
    return Steps(Largest(told.keep, told.scope), consensus, told.scaling)


def ties_of_paper(told: Kept) -> Steps:
    """As in the paper: one trim of the whole model, the mean of what agrees."""
    return ties(Ties(keep=told.keep, scaling=told.scaling))


def ties_of_mergekit(told: Kept) -> Steps:
    """As in mergekit 0.1.4 with its defaults."""
    elect = Elect(tie="plus")
    return ties(Ties(told.keep, "tensor", elect, "weighted_mean", told.scaling))


def ties_of_peft(told: Kept) -> Steps:
    """As in peft 0.21 with `ties_svd`, before its SVD."""
    elect = Elect(weights="after", tie="plus")
    return ties(Ties(told.keep, "tensor", elect, "mean", told.scaling))


def trim(told: Magnitude) -> Steps:
    """The largest entries of each change, summed."""
    return Steps(Largest(told.keep, told.scope), WeightedSum(), told.scaling)


def breadcrumbs(told: Breadcrumbs) -> Steps:
    """Each change without outliers and without noise, summed."""
    return Steps(Largest(told.keep, told.scope, told.top), WeightedSum(), told.scaling)


def dare(told: Dare) -> Steps:
    """Entries kept by chance and made larger for it, summed."""
    return Steps(Dropped(told.keep, told.seed), WeightedSum(), told.scaling)


def dare_ties(told: DareTies) -> Steps:
    """Entries kept by chance and made larger for it; what agrees on a sign is merged."""
    consensus = Consensus(told.combine, told.elect)
    return Steps(Dropped(told.keep, told.seed), consensus, told.scaling)


def della(told: Della) -> Steps:
    """Large entries are more likely to be kept; what agrees on a sign is merged."""
    consensus = Consensus(told.combine, told.elect)
    return Steps(Ranked(told.keep, told.window, told.seed), consensus, told.scaling)


def della_linear(told: DellaLinear) -> Steps:
    """Large entries are more likely to be kept, summed."""
    return Steps(Ranked(told.keep, told.window, told.seed), WeightedSum(), told.scaling)


def sce(told: Sce) -> SelectCalculateErase:
    """Select what differs, weigh by squares, elect signs."""
    return SelectCalculateErase(told.keep, told.scaling)


def knots_sum(
    layers: Sequence[Factored], inputs: Inputs, _: NoParameters
) -> Iterator[tuple[str, Pair]]:
    """The weighted sum along the output directions that all changes share."""
    return merge_coordinates("knots", add_up(Sum()), layers, inputs)


def knots_ties(
    layers: Sequence[Factored], inputs: Inputs, told: Ties
) -> Iterator[tuple[str, Pair]]:
    """TIES along the output directions that all changes share."""
    return merge_coordinates("knots", ties(told), layers, inputs)


def core_ties(layers: Sequence[Factored], inputs: Inputs, told: Ties) -> Iterator[tuple[str, Pair]]:
    """TIES along the directions that all changes share on both sides."""
    return merge_coordinates("core", ties(told), layers, inputs)
