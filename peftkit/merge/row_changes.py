"""What each term of a merge changes of one of the base's tensors, a few rows at a time.

Every reader fills a buffer that it is given, so that one block of numbers, which fits into the
processor's cache, is all that a term needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.merge.methods.stream import Read
    from peftkit.merge.tensor_files import Place, TensorFiles

Fill = Callable[[int, int, Tensor], None]
"""Puts rows `start` to `stop` of a change into a buffer of as many rows."""
ReadRows = Callable[[int, int], Tensor]
"""Rows of a weight as they are stored, in a buffer of their own or one that is filled again."""


class BaseRows:
    """Rows of the base in the format of sums; those that were read last are not read again."""

    def __init__(
        self, files: TensorFiles, dtype: torch.dtype, grown: Mapping[str, int] | None = None
    ) -> None:
        self.files = files
        self.dtype = dtype
        self.new: dict[str, dict[int, Tensor]] = {}
        """By tensor: rows that stand for tokens which the base does not know."""
        self._grown = dict(grown or {})
        self._last: tuple[str, int, int] | None = None
        self._rows = torch.empty(0, dtype=dtype)
        self._scratch = Scratch(dtype)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The rows; whoever wants to keep them makes a copy."""
        if self._last != (name, start, stop):
            self._rows = self._scratch.take((stop - start, self.place(name).columns))
            self._fill(name, start, stop)
            self._last = (name, start, stop)
        return self._rows

    def _fill(self, name: str, start: int, stop: int) -> None:
        there = min(max(self.files.places[name].rows - start, 0), stop - start)
        if there:
            self._rows[:there].copy_(self.files.rows(name, start, start + there))
        self._rows[there:] = 0
        for row, values in self.new.get(name, {}).items():
            if start <= row < stop:
                self._rows[row - start] = values

    def reader(self, name: str) -> ReadRows:
        """What reads rows of one tensor."""
        return lambda start, stop: self.read(name, start, stop)

    def place(self, name: str) -> Place:
        """What a tensor of the result looks like: some have more rows than the base's."""
        place = self.files.places[name]
        if name not in self._grown:
            return place
        rows = self._grown[name]
        size = place.bytes // max(1, place.rows) * rows
        return replace(place, shape=(rows, place.columns), bytes=size)


class Scratch:
    """Memory that is used again and again: asking the system for it costs more than the sums."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._all = torch.empty(0, dtype=dtype)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor of this shape; the one that was taken before is overwritten."""
        size = 1
        for each in shape:
            size *= each
        if size > self._all.numel():
            self._all = torch.empty(size, dtype=self._all.dtype)
        return self._all[:size].view(shape)


@dataclass(frozen=True, slots=True)
class RowChange:
    """What one term changes of a tensor, as a sum of parts."""

    parts: tuple[Fill, ...]
    factor: float = 1.0

    def begin(self) -> Fill:
        """What fills in the change; it needs no preparation."""
        return self.fill

    def fill(self, start: int, stop: int, into: Tensor) -> None:
        """Put the rows of the change into a buffer."""
        if not self.parts:
            into.zero_()
            return
        self.parts[0](start, stop, into)
        for part in self.parts[1:]:
            more = torch.empty_like(into)
            part(start, stop, more)
            into += more
        if self.factor != 1:
            into *= self.factor

    def reader(self, columns: int, dtype: torch.dtype) -> Read:
        """The change as methods read it: every block in memory of its own."""

        def read(start: int, stop: int) -> Tensor:
            found = torch.empty(stop - start, columns, dtype=dtype)
            self.fill(start, stop, found)
            return found

        return read


def of_tuned(tuned: ReadRows, base: ReadRows) -> Fill:
    """A fine-tuned weight less the base's."""

    def fill(start: int, stop: int, into: Tensor) -> None:
        into.copy_(tuned(start, stop))
        into -= base(start, stop)

    return fill


def of_aligned(tuned: TensorFiles, name: str, places: Tensor, base: ReadRows) -> Fill:
    """The same with rows matched by their tokens; what the model has no row for stays as it is."""

    def fill(start: int, stop: int, into: Tensor) -> None:
        wanted = places[start:stop]
        known = wanted >= 0
        into.copy_(base(start, stop))
        into[known] = tuned.pick(name, wanted[known]).to(into.dtype)
        into -= base(start, stop)

    return fill


def of_factors(left: Tensor, right: Tensor) -> Fill:
    """The product of two factors, as the weight lies."""

    def fill(start: int, stop: int, into: Tensor) -> None:
        torch.mm(left[start:stop], right, out=into)

    return fill


def of_whole(values: Tensor, columns: int) -> Fill:
    """A change that is in memory."""
    rows = values.reshape(-1, columns)

    def fill(start: int, stop: int, into: Tensor) -> None:
        into.copy_(rows[start:stop])

    return fill


def of_scaling(numbers: Tensor, base: ReadRows) -> Fill:
    """The base's own weight times a row of numbers, or a column."""

    def fill(start: int, stop: int, into: Tensor) -> None:
        some = numbers if numbers.shape[0] == 1 else numbers[start:stop]
        torch.mul(base(start, stop), some, out=into)

    return fill
