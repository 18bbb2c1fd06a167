"""Packing loses nothing, keeps its promise on the width, and fills its rows."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.packing import fill, pack

CAPACITY = 64
documents = some.lists(some.integers(1, CAPACITY), max_size=60)


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook's version: look at every row."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        used = [sum(lengths[other] for other in row) for row in rows]
        open_rows = [at for at, tokens in enumerate(used) if tokens + lengths[index] <= capacity]
        if open_rows:
            rows[max(open_rows, key=lambda at: (used[at], -at))].append(index)
        else:
            rows.append([index])
    return sorted(sorted(row) for row in rows)


@given(lengths=documents, spare=some.integers(0, 32))
def test_every_document_is_in_one_row_and_no_row_is_too_long(
    lengths: list[int], spare: int
) -> None:
    rows = pack(lengths, CAPACITY + spare)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= CAPACITY + spare for row in rows)


@given(lengths=documents)
def test_it_is_best_fit_longest_first(lengths: list[int]) -> None:
    assert pack(lengths, CAPACITY) == best_fit_decreasing(lengths, CAPACITY)


@given(lengths=documents)
def test_no_two_rows_would_fit_into_one(lengths: list[int]) -> None:
    used = [sum(lengths[index] for index in row) for row in pack(lengths, CAPACITY)]
    assert all(one + other > CAPACITY for one, other in combinations(used, 2))


@given(lengths=documents)
def test_rows_and_documents_keep_the_order_of_the_data(lengths: list[int]) -> None:
    rows = pack(lengths, CAPACITY)
    assert rows == pack(tuple(lengths), CAPACITY)
    assert all(row == sorted(row) for row in rows)
    assert rows == sorted(rows)


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_at_least_97_percent_full(seed: int) -> None:
    drawn = np.random.default_rng(seed).lognormal(5, 0.8, 2000)
    lengths = np.clip(drawn, 1, 1024).astype(int).tolist()
    rows = pack(lengths, 1024)
    assert fill(lengths, rows, 1024) >= 0.97
    assert fill(lengths, rows, 1024) == sum(lengths) / (1024 * len(rows))


def test_no_documents_are_no_rows() -> None:
    assert pack([], 8) == []
    assert fill([], [], 8) == 0.0
