"""Examples that are not copied: some of a set in another order, or several sets in a row."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, overload

import numpy as np

from peftkit.data.example import Example

if TYPE_CHECKING:
    from numpy.typing import NDArray


class View(Sequence[Example]):
    """A sequence of examples that are made, or looked up, when they are asked for."""

    def at(self, index: int) -> Example:
        """The example at a place from 0 on."""
        raise NotImplementedError

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return np.fromiter((example.length for example in self), np.int64, len(self))

    @property
    def sources(self) -> NDArray[np.object_]:
        """The source of each example."""
        return np.fromiter((example.source for example in self), np.object_, len(self))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        """One example, or a view of some."""
        if isinstance(index, slice):
            return Picked(self, np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.at(index % len(self))


class Picked(View):
    """The examples at some places of a set, in the order of the places; one may come twice."""

    def __init__(self, examples: Sequence[Example], places: NDArray[np.int64]) -> None:
        self.examples = examples
        self.places = places

    def __len__(self) -> int:
        """How many places were picked."""
        return len(self.places)

    def at(self, index: int) -> Example:
        """The example at one of the places."""
        return self.examples[int(self.places[index])]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return lengths_of(self.examples)[self.places]

    @property
    def sources(self) -> NDArray[np.object_]:
        """The source of each example."""
        return sources_of(self.examples)[self.places]


class Chained(View):
    """Several sets, one after the other."""

    def __init__(self, sets: Sequence[Sequence[Example]]) -> None:
        self.sets = tuple(sets)
        self.ends = tuple(accumulate(map(len, self.sets)))

    def __len__(self) -> int:
        """Examples of all sets."""
        return self.ends[-1] if self.ends else 0

    def at(self, index: int) -> Example:
        """The example at a place counted through all sets."""
        number = bisect_right(self.ends, index)
        return self.sets[number][index - (self.ends[number - 1] if number else 0)]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return np.concatenate([np.empty(0, np.int64), *map(lengths_of, self.sets)])

    @property
    def sources(self) -> NDArray[np.object_]:
        """The source of each example."""
        return np.concatenate([np.empty(0, np.object_), *map(sources_of, self.sets)])


def lengths_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Tokens of each example, without making the examples where their set knows."""
    if isinstance(examples, View):
        return examples.lengths
    return np.fromiter((example.length for example in examples), np.int64, len(examples))


def sources_of(examples: Sequence[Example]) -> NDArray[np.object_]:
    """The source of each example, without making the examples where their set knows."""
    if isinstance(examples, View):
        return examples.sources
    return np.fromiter((example.source for example in examples), np.object_, len(examples))
