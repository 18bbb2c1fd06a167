"""What is merged: names, digests and weights, checked, and the one order they are added in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from peftkit.errors import InputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The changes that are merged, in the order in which their tensors are given.

    Raises:
        RecipeError: there are none, their lists differ in length, two have one name, or a weight
            is not a finite number.
    """

    weights: tuple[float, ...]
    names: tuple[str, ...]
    digests: tuple[str, ...]
    """Of the content: they decide the random numbers and the order of sums."""

    def __post_init__(self) -> None:
        lengths = (len(self.names), len(self.weights), len(self.digests))
        if len(set(lengths)) > 1:
            raise RecipeError("{} names, {} weights and {} digests: one of each".format(*lengths))
        if not self.names:
            raise RecipeError("nothing to merge: expected at least one adapter")
        for number, name in enumerate(self.names):
            if name in self.names[:number]:
                raise RecipeError(f"`{name}` is named twice; give it one weight")
        for name, weight in zip(self.names, self.weights, strict=True):
            if not math.isfinite(weight):
                raise RecipeError(f"`{name}`: expected a finite weight, got `{weight}`")

    def __len__(self) -> int:
        """How many changes are merged."""
        return len(self.names)

    @property
    def order(self) -> tuple[int, ...]:
        """Their places in the order of sums, which no user decides: by content, then weight.

        Sums of floats depend on the order in their last bit.
        """
        keys = list(zip(self.digests, self.weights, strict=True))
        return tuple(sorted(range(len(keys)), key=keys.__getitem__))

    def sorted(self) -> Inputs:
        """The same in the order of sums."""
        return Inputs(
            pick(self.weights, self.order),
            pick(self.names, self.order),
            pick(self.digests, self.order),
        )

    def fit(self, things: Sequence[Item], what: str) -> tuple[Item, ...]:
        """One thing for each input, in the order of sums.

        Raises:
            InputError: there are more or fewer things.
        """
        if len(things) != len(self):
            raise InputError(f"{what}: {len(things)} given for {len(self)} adapters")
        return pick(things, self.order)


def pick(things: Sequence[Item], places: Sequence[int]) -> tuple[Item, ...]:
    """The things at some places, in the order of the places."""
    return tuple(things[place] for place in places)


def normalized(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights divided by their sum.

    Raises:
        RecipeError: one is negative, which a normalized sum would turn into something else, or
            all are 0.
    """
    if negative := [weight for weight in weights if weight < 0]:
        raise RecipeError(
            f"normalize: the weight `{negative[0]}` is negative, and dividing by the sum would "
            "change what it means",
            hint="leave `normalize` out to subtract",
        )
    total = math.fsum(weights)
    if total == 0:
        raise RecipeError("normalize: the weights sum to 0; expected more")
    return tuple(weight / total for weight in weights)
