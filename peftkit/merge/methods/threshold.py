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
from torch.nn.functional import hardshrink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Blocks = Callable[[], Iterator[Tensor]]

FEW = 1 << 12
"""So many entries are sorted: a histogram has more places than that."""
HELD = 1 << 26
"""So many are held while they are counted, a quarter of a gibibyte; more are read each time."""
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

    def shrink(self, block: Tensor, first: int) -> Tensor:
        """A block with 0 for every entry that is not among them.

        Where no place decides, one comparison with a bound does, many times as fast as masks.
        """
        if first <= self.last < first + block.numel() - 1:
            return block * self.keeps(block, first)
        size = torch.tensor(self.size, dtype=block.dtype)
        if first <= self.last:  # entries of just that size are among them
            size = size.nextafter(torch.tensor(-math.inf, dtype=block.dtype))
        return hardshrink(block, size.item())


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
    if whole <= HELD:
        held = [block.abs() for block in blocks()]
        return _find(lambda: iter(held), count, whole)
    return _find(blocks, count, whole)


def _find(blocks: Blocks, count: int, whole: int) -> Threshold:
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
    places = 1 << _DIGIT
    total = torch.zeros(places + 2, dtype=torch.int64)
    for block in blocks():
        keys = block.abs().view(kind).flatten() >> shift
        if shift + _DIGIT < bits:  # other prefixes are counted below and above, not left out
            keys -= prefix << _DIGIT
        total += torch.bincount(keys.clamp_(-1, places) + 1, minlength=places + 2).cpu()
    return total[1:-1]


def _place(blocks: Blocks, size: float, wanted: int) -> int:
    """The place of the `wanted`-th entry of just that size."""
    first = 0
    for block in blocks():
        sizes = block.abs().flatten()
        count = int(torch.eq(sizes, size, out=torch.empty_like(sizes)).sum(dtype=torch.float64))
        if wanted <= count:
            return first + int((sizes == size).nonzero().flatten()[wanted - 1])
        wanted, first = wanted - count, first + block.numel()
    raise RuntimeError("the blocks changed between two passes")
