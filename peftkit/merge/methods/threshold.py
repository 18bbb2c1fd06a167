"""The exact bound between the largest entries and the rest, found without sorting or holding them.

The bits of a float without its sign grow with it. A histogram of the highest 16 bits says which of
them the bound has, a second pass among those the next 16. Entries of one size are told apart by
their place, so that exactly as many are kept as were asked for, in one block or in a thousand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Blocks = Callable[[], Iterator[Tensor]]

FEW = 1 << 12
"""So many entries are sorted: a histogram has more places than that."""
ALL = 1 << 62
"""A place behind every entry."""
_DIGIT = 16
_BITS = {torch.float32: (torch.int32, 32), torch.float64: (torch.int64, 64)}


@dataclass(frozen=True, slots=True)
class Threshold:
    """Which entries are among the largest: those above a size, and the first of just that size."""

    size: float
    last: int
    """Place of the last entry of just that size."""

    def keeps(self, block: Tensor, first: int) -> Tensor:
        """Whether each entry of a block, whose first one has the place `first`, is among them."""
        sizes = block.abs()
        kept = sizes > self.size
        equal = sizes == self.size
        if first + block.numel() - 1 > self.last:
            places = torch.arange(first, first + block.numel(), device=block.device)
            equal &= (places <= self.last).view_as(block)
        return kept | equal


NONE = Threshold(math.inf, -1)


def largest(blocks: Blocks, count: int, whole: int) -> Threshold:
    """The bound of the `count` largest entries of all blocks, counted by size.

    Args:
        blocks: begins a pass over all entries, in the order of their places.
        count: how many entries are wanted.
        whole: how many there are.
    """
    if count == 0:
        return NONE
    if whole <= FEW:
        sizes = torch.cat([block.abs().flatten() for block in blocks()])
        size = float(sizes.sort(descending=True).values[count - 1])
        return Threshold(size, _place(blocks, size, count - int((sizes > size).sum())))
    return _by_bits(blocks, count)


def _by_bits(blocks: Blocks, count: int) -> Threshold:
    """The bound by histograms of digits, the highest first."""
    dtype = next(blocks()).dtype
    kind, bits = _BITS[dtype]
    prefix, wanted, equal = 0, count, 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        histogram = _histogram(blocks, dtype, prefix, shift)
        above = histogram.flip(0).cumsum(0)
        digit = len(above) - 1 - int((above < wanted).sum())
        wanted -= int(above[-1 - digit] - histogram[digit])
        prefix, equal = (prefix << _DIGIT) | digit, int(histogram[digit])
    size = torch.tensor(prefix, dtype=kind).view(dtype).item()
    return Threshold(size, ALL if wanted == equal else _place(blocks, size, wanted))


def _histogram(blocks: Blocks, dtype: torch.dtype, prefix: int, shift: int) -> Tensor:
    """How often each digit follows a prefix."""
    kind, bits = _BITS[dtype]
    total = torch.zeros(1 << _DIGIT, dtype=torch.int64)
    for block in blocks():
        keys = block.abs().view(kind).flatten() >> shift
        if shift + _DIGIT < bits:
            keys = keys[(keys >> _DIGIT) == prefix] & ((1 << _DIGIT) - 1)
        total += torch.bincount(keys, minlength=1 << _DIGIT).cpu()
    return total


def _place(blocks: Blocks, size: float, wanted: int) -> int:
    """The place of the `wanted`-th entry of just that size."""
    first = 0
    for block in blocks():
        places = (block.abs().flatten() == size).nonzero().flatten()
        if wanted <= len(places):
            return first + int(places[wanted - 1])
        wanted, first = wanted - len(places), first + block.numel()
    raise RuntimeError("the blocks changed between two passes")
