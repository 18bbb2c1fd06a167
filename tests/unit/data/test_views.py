"""Views show the examples that a list of them would."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.data.example import Example
from peftkit.data.views import Chained, Picked, lengths_of, names_of


def make(count: int, first: int = 0) -> list[Example]:
    return [
        Example(
            np.arange(number + 1, dtype=np.int32),
            np.ones(number + 1, np.bool_),
            f"rows.jsonl:{first + number}",
            str(first + number),
            "text",
            source=f"source {number % 3}",
        )
        for number in range(count)
    ]


def spelled(examples: Sequence[Example]) -> list[str]:
    """The source of each example, by way of the set's own numbers."""
    found = names_of(examples, "source")
    return [found.words[number] for number in found.numbers.tolist()]


@given(st.lists(st.integers(0, 6), max_size=12), st.slices(12))
def test_picked_examples_are_those_at_the_places(places: list[int], part: slice) -> None:
    examples = make(7)
    picked = Picked(examples, np.array(places, np.int64))
    wanted = [examples[place] for place in places]
    assert list(picked) == wanted
    assert list(picked[part]) == wanted[part]
    assert picked.lengths.tolist() == [example.length for example in wanted]
    assert spelled(picked) == [example.source for example in wanted]


@given(st.lists(st.integers(0, 4), max_size=5))
def test_chained_sets_follow_each_other(sizes: list[int]) -> None:
    sets = [make(size, 10 * number) for number, size in enumerate(sizes)]
    chained = Chained(sets)
    wanted = [example for each in sets for example in each]
    assert list(chained) == wanted
    assert [chained[-1 - at] for at in range(len(wanted))] == wanted[::-1]
    assert lengths_of(chained).tolist() == lengths_of(wanted).tolist()
    assert spelled(chained) == [example.source for example in wanted]
    assert spelled(wanted) == spelled(chained[:])


@pytest.mark.parametrize("index", [2, -3])
def test_a_place_beyond_the_end_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError):
        Picked(make(3), np.array([0, 2]))[index]
