"""Packing loses nothing, keeps its promise on the width, and fills its rows."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.batch import Layout, make_update
from peftkit.data.example import Example
from peftkit.data.packing import DRAWN, expected_fill, fill, pack
from peftkit.data.task import Task

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


@given(
    lengths=some.lists(some.integers(1, CAPACITY), min_size=1, max_size=40),
    rows=some.integers(1, 12),
    micro_rows=some.integers(1, 5),
    packing=some.booleans(),
    seed=some.integers(0, 3),
)
def test_the_fill_that_is_expected_is_that_of_the_batches(
    lengths: list[int], rows: int, micro_rows: int, *, packing: bool, seed: int
) -> None:
    told = expected_fill(
        np.array(lengths), rows=rows, micro_rows=micro_rows, packing=packing, seed=seed
    )
    order = np.random.default_rng(seed).permutation(len(lengths))
    assert len(lengths) <= DRAWN * rows
    task = Task("causal-lm" if packing else "classification", ("x",))
    layout = Layout(packing, micro_rows, 0, task=task)
    documents = [
        Example(np.ones(size, np.int32), np.ones(size, bool), "", "", "", labels=("x",))
        for size in lengths
    ]
    updates = [
        make_update([documents[at] for at in order[start : start + rows]], layout)
        for start in range(0, len(lengths), rows)
    ]
    places = sum(batch.inputs.numel() for update in updates for batch in update.micro_batches)
    assert told == pytest.approx(sum(lengths) / places)


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_update_packs_better(seed: int) -> None:
    drawn = np.random.default_rng(seed).lognormal(5, 0.8, 2000)
    lengths = np.clip(drawn, 1, 1024).astype(np.int64)
    fills = [
        expected_fill(lengths, rows=rows, micro_rows=4, packing=True, seed=seed)
        for rows in (4, 16, 64)
    ]
    assert fills == sorted(fills)
    assert fills[-1] >= 0.95
