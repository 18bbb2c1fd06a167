"""Held-out rows are chosen by what they say, so neither copies nor added rows disturb them."""

from collections import Counter
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.example import Example
from peftkit.data.split import split_rows

texts = some.lists(some.text("abcdefgh ", min_size=1, max_size=8), max_size=30)
fractions = some.floats(0.01, 0.99)
PAIR = np.array([False, True])


def examples(texts: list[str]) -> list[Example]:
    pair = np.zeros(2, np.int32)
    return [
        Example(pair, PAIR, f"f:{number}", text, text) for number, text in enumerate(texts, start=1)
    ]


def held_keys(texts: list[str], fraction: float) -> set[str]:
    return {example.key for example in split_rows(examples(texts), fraction)[1]}


@given(texts=texts, fraction=fractions)
def test_each_row_is_on_one_side_in_its_old_order(texts: list[str], fraction: float) -> None:
    rows = examples(texts)
    kept, held = split_rows(rows, fraction)
    assert sorted(kept + held, key=lambda row: int(row.where[2:])) == rows
    for side in (kept, held):
        assert side == sorted(side, key=lambda row: int(row.where[2:]))


@given(texts=texts, fraction=fractions)
def test_copies_are_on_the_same_side(texts: list[str], fraction: float) -> None:
    rows = examples([*texts, *(f"{text.upper()}!" for text in texts), *texts])
    kept, held = split_rows(rows, fraction)
    assert not {row.key for row in kept} & {row.key for row in held}


@given(texts=texts, fraction=fractions)
def test_two_different_rows_are_enough_for_both_sides(texts: list[str], fraction: float) -> None:
    different = len({row.key for row in examples(texts)})
    kept, held = split_rows(examples(texts), fraction)
    if different > 1:
        assert kept
        assert held
    else:
        assert (len(kept), held) == (len(texts), [])


@given(texts=texts, added=texts, fraction=some.floats(0.2, 0.8))
def test_added_rows_move_none_that_was_there(
    texts: list[str], added: list[str], fraction: float
) -> None:
    texts = [*texts, *(f"row {number}" for number in range(40))]
    before = held_keys(texts, fraction)
    after = held_keys([*added, *texts], fraction)
    assert after & {row.key for row in examples(texts)} == before


@given(texts=texts, added=texts, fraction=fractions)
def test_in_a_tiny_set_they_move_at_most_one(
    texts: list[str], added: list[str], fraction: float
) -> None:
    """One row had to be put on a side where the fraction alone would have left none."""
    before = held_keys(texts, fraction)
    after = held_keys([*texts, *added], fraction)
    moved = (after & {row.key for row in examples(texts)}) ^ before
    assert len(moved) <= 1


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
def test_the_share_is_the_one_asked_for(fraction: float) -> None:
    rows = examples([f"row {number}" for number in range(4000)])
    held = len(split_rows(rows, fraction)[1])
    assert abs(held - 4000 * fraction) < 4 * sqrt(4000 * fraction * (1 - fraction))


def test_a_larger_fraction_holds_out_the_same_rows_and_more() -> None:
    rows = [f"row {number}" for number in range(200)]
    sizes = Counter()
    smaller: set[str] = set()
    for fraction in (0.1, 0.2, 0.4, 0.8):
        held = held_keys(rows, fraction)
        assert smaller < held
        smaller = held
        sizes[len(held)] += 1
    assert len(sizes) == 4
