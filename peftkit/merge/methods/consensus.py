"""How thinned changes become one: a weighted sum, or only what agrees on a sign."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from peftkit.errors import RecipeError
from peftkit.merge.methods.inputs import normalized
from peftkit.merge.methods.parameters import Parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Elect(Parameters):
    """How the sign of an entry is elected."""

    by: Literal["mass", "count"] = "mass"
    """`mass`: the sign of the sum; `count`: of the number of changes on either side."""
    weights: Literal["before", "after"] = "before"
    """Whether changes vote with their weights, or are weighed after the election."""
    tie: Literal["plus", "majority"] = "majority"
    """The sign where both sides are even: plus, or the one that most entries of the model have."""


class Combine(Protocol):
    """A way to make one block of several."""

    def __call__(self, blocks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The merged block."""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Every change times its weight."""

    normalize: bool = False

    def __call__(self, blocks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The sum, added up in the order of the blocks."""
        return add(weigh(blocks, normalized(weights) if self.normalize else weights))


@dataclass(frozen=True, slots=True)
class Consensus:
    """Of every entry only the changes that have the elected sign."""

    combine: Literal["mean", "sum", "weighted_mean"]
    elect: Elect = field(default_factory=Elect)
    even: float = 1.0
    """The sign where both sides are even."""

    def __call__(self, blocks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The mean or sum of what agrees.

        Raises:
            RecipeError: a weighted mean is asked for, and a weight is negative.
        """
        if self.combine == "weighted_mean" and min(weights) < 0:
            raise RecipeError(
                f"combine: a weighted mean with the weight `{min(weights):g}` would not subtract",
                hint="`combine: mean` takes negative weights",
            )
        weighed = weigh(blocks, weights)
        voting = self._voting(blocks, weighed)
        signs = self._signs(self._votes(voting))
        weighted = self.combine == "weighted_mean"
        total, divisor = torch.zeros_like(signs), torch.zeros_like(signs)
        for block, vote, weight in zip(weighed, voting, weights, strict=True):
            agrees = (vote * signs).clamp_(min=0).sign_()  # 1 or 0: masks of bits are slower
            total += block * agrees
            divisor += agrees.mul_(weight) if weighted else agrees
        if self.combine == "sum":
            return total
        return total.div_(divisor.clamp_(min=torch.finfo(divisor.dtype).tiny))  # 0 by 0 is 0

    def votes(self, blocks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """What decides the sign of each entry; 0 where both sides are even."""
        return self._votes(self._voting(blocks, weigh(blocks, weights)))

    def _signs(self, votes: Tensor) -> Tensor:
        """1 or -1 for every entry, and where both sides are even what is agreed on for it."""
        if not self.even:
            return votes.sign_()
        above = torch.ge if self.even > 0 else torch.gt
        return above(votes, 0, out=torch.empty_like(votes)).mul_(2).sub_(1)

    def _voting(self, blocks: Sequence[Tensor], weighed: Sequence[Tensor]) -> Sequence[Tensor]:
        return weighed if self.elect.weights == "before" else blocks

    def _votes(self, voting: Sequence[Tensor]) -> Tensor:
        return add(voting if self.elect.by == "mass" else [block.sign() for block in voting])


def weigh(blocks: Sequence[Tensor], weights: Sequence[float]) -> list[Tensor]:
    """Every block times its weight."""
    return [
        block if weight == 1 else block * weight
        for block, weight in zip(blocks, weights, strict=True)
    ]


def add(blocks: Sequence[Tensor]) -> Tensor:
    """The sum in the order given, rounded alike wherever an entry stands in its block."""
    total = torch.clone(blocks[0])
    for block in blocks[1:]:
        total += block
    return total
