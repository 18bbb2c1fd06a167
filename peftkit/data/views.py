"""Examples that are not copied: some of a set in another order, or several sets in a row.

What a whole set is asked for comes as arrays of numbers, so that a set of millions of rows on disk
needs some bytes a row in memory and no example.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from peftkit.data.example import Example

if TYPE_CHECKING:
    from numpy.typing import NDArray


NUMBERS: dict[str, Callable[[Example], int]] = {
    "length": attrgetter("length"),
    "trained": attrgetter("trained_tokens"),
    "cut": attrgetter("cut"),
    "key": attrgetter("key_number"),
    "content": attrgetter("content"),
}
"""What each example is as a number, by the name it is asked for."""
UNSIGNED = ("key", "content")
TOGETHER = 1024
"""Examples that are made at once where one after the other is asked for."""


class View(Sequence[Example]):
    """A sequence of examples that are made, or looked up, when they are asked for."""

    @abstractmethod
    def at(self, index: int) -> Example:
        """The example at a place from 0 on."""

    def some(self, places: NDArray[np.int64]) -> list[Example]:
        """The examples at some places, in the order of the places."""
        return [self.at(place) for place in places.tolist()]

    def numbers(self, name: str) -> NDArray[Any]:
        """One of `NUMBERS` of each example."""
        return _count(self, name)

    def names(self, name: str) -> Names:
        """The `source` or the `format` of each example."""
        return _spell(self, name)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return self.numbers("length")

    def __iter__(self) -> Iterator[Example]:
        """The examples in order, of which few are in memory at a time."""
        for first in range(0, len(self), TOGETHER):
            yield from self.some(np.arange(first, min(first + TOGETHER, len(self))))

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

    def some(self, places: NDArray[np.int64]) -> list[Example]:
        """The examples at some of the places."""
        return some_of(self.examples, self.places[places])

    def numbers(self, name: str) -> NDArray[Any]:
        """One of `NUMBERS` of each example."""
        return numbers_of(self.examples, name)[self.places]

    def names(self, name: str) -> Names:
        """The `source` or the `format` of each example."""
        whole = names_of(self.examples, name)
        return Names(whole.words, whole.numbers[self.places])


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

    def some(self, places: NDArray[np.int64]) -> list[Example]:
        """The examples at places counted through all sets."""
        return gather(places, self.ends, lambda number, own: some_of(self.sets[number], own))

    def numbers(self, name: str) -> NDArray[Any]:
        """One of `NUMBERS` of each example."""
        none = np.empty(0, _kind(name))
        return np.concatenate([none, *(numbers_of(each, name) for each in self.sets)])

    def names(self, name: str) -> Names:
        """The `source` or the `format` of each example."""
        found = [names_of(each, name) for each in self.sets]
        words = {word: None for each in found for word in each.words}
        places = {word: number for number, word in enumerate(words)}
        moved = [
            np.array([places[word] for word in each.words], np.int16)[each.numbers]
            for each in found
        ]
        return Names(tuple(words), np.concatenate([np.empty(0, np.int16), *moved]))


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """One of few words for each example of a set."""

    words: tuple[str, ...]
    numbers: NDArray[np.int16]
    """The place of each example's word among `words`."""

    @property
    def used(self) -> list[str]:
        """The words that an example has, sorted."""
        return sorted({self.words[number] for number in np.unique(self.numbers).tolist()})

    def where(self, word: str) -> NDArray[np.bool_]:
        """Which examples have a word."""
        found: NDArray[np.bool_] = self.numbers == self.words.index(word)
        return found


def lengths_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Tokens of each example, without making the examples where their set knows."""
    return examples.lengths if isinstance(examples, View) else _count(examples, "length")


def numbers_of(examples: Sequence[Example], name: str) -> NDArray[Any]:
    """One of `NUMBERS` of each example, without making the examples where their set knows."""
    return examples.numbers(name) if isinstance(examples, View) else _count(examples, name)


def names_of(examples: Sequence[Example], name: str) -> Names:
    """The `source` or the `format` of each example, likewise."""
    return examples.names(name) if isinstance(examples, View) else _spell(examples, name)


def some_of(examples: Sequence[Example], places: NDArray[np.int64]) -> list[Example]:
    """The examples at some places, in the order of the places."""
    if isinstance(examples, View):
        return examples.some(places)
    return [examples[place] for place in places.tolist()]


def gather(
    places: NDArray[np.int64],
    ends: Sequence[int],
    take: Callable[[int, NDArray[np.int64]], list[Example]],
) -> list[Example]:
    """The examples at places counted through several parts, each part asked once.

    Args:
        places: in any order.
        ends: how many examples there are up to the end of each part.
        take: the examples of a part, at places of its own.
    """
    parts = np.searchsorted(np.asarray(ends), places, side="right")
    order = np.argsort(parts, kind="stable")
    found: list[Example] = []
    for part in np.unique(parts).tolist():
        own = places[parts == part]  # in the order that a stable sort leaves them in
        found += take(part, own - (ends[part - 1] if part else 0))
    return [found[place] for place in np.argsort(order).tolist()]


def _kind(name: str) -> type[np.int64 | np.uint64]:
    return np.uint64 if name in UNSIGNED else np.int64


def _count(examples: Sequence[Example], name: str) -> NDArray[Any]:
    found = map(NUMBERS[name], examples)
    return np.fromiter(found, _kind(name), len(examples))


def _spell(examples: Sequence[Example], name: str) -> Names:
    words: dict[str, int] = {}
    found = (words.setdefault(getattr(each, name), len(words)) for each in examples)
    numbers = np.fromiter(found, np.int16, len(examples))
    return Names(tuple(words), numbers)
