"""Sums of changes without a new tensor for any step: the fast twin of `merge_blocks` for sums.

The same numbers are multiplied and added in the same order, so the result is the same to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from peftkit.merge.methods.consensus import WeightedSum
from peftkit.merge.methods.entry_wise import Steps
from peftkit.merge.methods.inputs import normalized
from peftkit.merge.methods.thin import Whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from peftkit.merge.methods.entry_wise import EntryWise

    Fill = Callable[[int, int, Tensor], None]


def sum_weights(method: EntryWise, weights: Sequence[float]) -> tuple[float, ...] | None:
    """What a method multiplies each change by, if it is a sum of whole changes; else None."""
    if not (isinstance(method, Steps) and isinstance(method.thin, Whole)):
        return None
    if not (isinstance(method.combine, WeightedSum) and method.scaling == 1):
        return None
    return normalized(weights) if method.combine.normalize else tuple(weights)


def add_in_place(
    fills: Sequence[Fill], weights: Sequence[float], start: int, stop: int, into: Tensor
) -> None:
    """The weighted sum of some rows of all changes, put into a buffer."""
    more = torch.empty_like(into) if len(fills) > 1 else into
    for place, (fill, weight) in enumerate(zip(fills, weights, strict=True)):
        rows = more if place else into
        fill(start, stop, rows)
        rows *= weight
        if place:
            into += rows
