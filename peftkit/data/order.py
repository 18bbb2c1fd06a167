"""Which row stands at each place of a run that has no end, as a pure function of the place.

`Shuffled` shows every row once a pass. `Mixed` gives each part of the rows its share of the tokens:
a part's rows come in its own endless line, pass after pass, each pass in a new seeded order. A row
stands where its middle would be if its part's line moved on by exactly its share of every token, so
at any place no part is more than about a row away from its share. Both are worked out a chunk at a
time, which takes numbers of some bytes a row and makes no example.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


class Order(Protocol):
    """The row at each place, and how many places an epoch has."""

    def at(self, place: int) -> int:
        """The number of the row at a place."""
        ...

    def places(self, epochs: float) -> float:
        """How many places so many epochs have; a fraction where the last row is not a whole one."""
        ...

    def seen(self, places: int) -> NDArray[np.int64]:
        """How often each row stands among the first places."""
        ...


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Every row once an epoch, each epoch in an order of its own."""

    rows: int
    seed: int

    def at(self, place: int) -> int:
        """The number of the row at a place."""
        epoch, index = divmod(place, self.rows)
        return int(permute(self.rows, self.seed, epoch)[index])

    def places(self, epochs: float) -> float:
        """How many places so many epochs have."""
        return epochs * self.rows

    def seen(self, places: int) -> NDArray[np.int64]:
        """How often each row stands among the first places."""
        whole, rest = divmod(places, self.rows)
        times = np.full(self.rows, whole, np.int64)
        times[permute(self.rows, self.seed, whole)[:rest]] += 1
        return times


@dataclass(frozen=True, eq=False)
class Part:
    """Rows that have a share of the run together."""

    rows: NDArray[np.int64]
    """Their numbers."""
    sizes: NDArray[np.float64]
    """What each row takes of the share: its tokens, or the same for all."""
    share: float
    """Of all that the run takes, above 0; those of all parts are 1 together."""
    counts: bool = True
    """Whether an epoch waits for this part."""

    @cached_property
    def total(self) -> float:
        """What all rows take together."""
        return float(self.sizes.sum())

    @property
    def pass_length(self) -> float:
        """What the whole run has taken when every row of this part has come once."""
        return self.total / self.share


@dataclass(frozen=True, eq=False)
class Mixed:
    """Parts interleaved so that each has its share; one that is used up starts over, reordered."""

    parts: tuple[Part, ...]
    seed: int
    epoch: Literal["all", "first"]
    """Until every part that counts has come whole, or until the first of them has."""

    @cached_property
    def epoch_length(self) -> float:
        """What an epoch takes, in the measure of the sizes."""
        lengths = [part.pass_length for part in self.parts if part.counts]
        return max(lengths) if self.epoch == "all" else min(lengths)

    @cached_property
    def chunk(self) -> float:
        """What as many rows as there are take on average."""
        rows = sum(len(part.rows) for part in self.parts)
        return rows / sum(part.share * len(part.rows) / part.total for part in self.parts)

    def at(self, place: int) -> int:
        """The number of the row at a place."""
        number = place // sum(len(part.rows) for part in self.parts)
        while self._start(number) > place:
            number -= 1
        while self._start(number + 1) <= place:
            number += 1
        return int(_chunk(self, number)[place - self._start(number)])

    def places(self, epochs: float) -> float:
        """How many places so many epochs have."""
        return sum(_due(self, number, epochs * self.epoch_length) for number in self._numbers)

    def seen(self, places: int) -> NDArray[np.int64]:
        """How often each row stands among the first places."""
        times = np.zeros(1 + max(int(part.rows.max()) for part in self.parts), np.int64)
        number = 0
        while (start := self._start(number)) < places:
            found = _chunk(self, number)[: places - start]
            times += np.bincount(found, minlength=len(times))
            number += 1
        return times

    @property
    def _numbers(self) -> range:
        return range(len(self.parts))

    def _start(self, number: int) -> int:
        return _start(self, number)


def settle_shares(
    sizes: Sequence[float], weights: Sequence[float], temperature: float
) -> list[float]:
    """The share of each part: by its weight, or p ∝ n^(1/T) where there are no weights."""
    if weights:
        return [weight / sum(weights) for weight in weights]
    powers = np.log(np.asarray(sizes, np.float64)) / temperature
    raised = np.exp(powers - powers.max())
    return [float(share) for share in raised / raised.sum()]


@lru_cache(maxsize=4)  # an update may straddle two passes, and two parts may be in turn
def permute(count: int, seed: int, epoch: int, part: int = 0) -> NDArray[np.int64]:
    """The order of one pass over the rows of a part."""
    # A trailing 0 changes nothing, so that the first part goes as it would alone.
    return np.random.default_rng([seed, epoch, part]).permutation(count)


def _middles(mixed: Mixed, number: int, epoch: int) -> NDArray[np.float64]:
    """Where the middle of each row of a part's pass stands in that pass, in its order."""
    part = mixed.parts[number]
    sizes = part.sizes[permute(len(part.rows), mixed.seed, epoch, number)]
    return np.cumsum(sizes) - sizes / 2


def _due(mixed: Mixed, number: int, length: float) -> int:
    """How many rows of a part have come when the whole run has taken `length`."""
    part = mixed.parts[number]
    passes, rest = divmod(part.share * length, part.total)
    middles = _middles(mixed, number, int(passes))
    return int(passes) * len(part.rows) + int(np.searchsorted(middles, rest))


@lru_cache(maxsize=8)
def _start(mixed: Mixed, number: int) -> int:
    """The first place of a chunk."""
    return sum(_due(mixed, part, number * mixed.chunk) for part in range(len(mixed.parts)))


@lru_cache(maxsize=2)  # an update may straddle two chunks
def _chunk(mixed: Mixed, number: int) -> NDArray[np.int64]:
    """The rows of a chunk in their order: of equal ones, those of the earlier part come first."""
    found = [_line(mixed, part, number) for part in range(len(mixed.parts))]
    rows = np.concatenate([rows for rows, _ in found])
    return rows[np.argsort(np.concatenate([at for _, at in found]), kind="stable")]


def _line(mixed: Mixed, number: int, chunk: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of a part that fall into a chunk, and where in the whole run each stands."""
    part, count = mixed.parts[number], len(mixed.parts[number].rows)
    first = _due(mixed, number, chunk * mixed.chunk)
    end = _due(mixed, number, (chunk + 1) * mixed.chunk)
    rows, at = [np.empty(0, np.int64)], [np.empty(0)]
    for epoch, own in _passes(first, end, count):
        rows.append(part.rows[permute(count, mixed.seed, epoch, number)[own]])
        at.append((epoch * part.total + _middles(mixed, number, epoch)[own]) / part.share)
    return np.concatenate(rows), np.concatenate(at)


def _passes(first: int, end: int, count: int) -> Iterator[tuple[int, slice]]:
    """The passes from one place of a line to another, and what of each lies between."""
    for epoch in range(first // count, -(-end // count)):
        yield epoch, slice(max(first - epoch * count, 0), min(end - epoch * count, count))
