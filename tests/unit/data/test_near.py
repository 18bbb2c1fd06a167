"""Pairs that are nearly the same are found as others find them, and few others are looked at."""

import tracemalloc

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given
from rows_alike import jaccard, train_and_held

from peftkit.data.near import (
    BANDS,
    LIKELY,
    NEAR,
    ROWS,
    Index,
    pairs_within,
    shingles_of,
    similarity,
    sketch,
    verify,
)

WORDS = [f"w{number}" for number in range(200)]


def random_rows(count: int, words: int = 80) -> list[list[str]]:
    draw = np.random.default_rng(0)
    return [[WORDS[at] for at in draw.integers(0, len(WORDS), words)] for _ in range(count)]


def edited(rows: list[list[str]]) -> list[list[str]]:
    """Each with one word more changed than the one before it, from none on."""
    draw = np.random.default_rng(1)
    changed = [list(row) for row in rows]
    for number, row in enumerate(changed):
        for at in draw.integers(0, len(row), number % 4):
            row[at] = "changed"
    return changed


@given(rows=train_and_held())
def test_the_overlap_is_that_of_sets_of_runs_of_five_words(
    rows: tuple[list[list[str]], list[list[str]]],
) -> None:
    for one in rows[0]:
        for other in rows[1]:
            found = similarity(shingles_of(" ".join(one)), shingles_of(" ".join(other)))
            assert found == jaccard(one, other)


def test_likely_pairs_are_those_of_datasketchs_own_index() -> None:
    train = random_rows(300)
    held = edited(train[:200])
    theirs = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    texts = [[" ".join(row) for row in side] for side in (held, train)]
    sketches = [sketch(side) for side in texts]
    made = [
        [
            MinHash(num_perm=BANDS * ROWS, seed=1, scheme="affine32", hashvalues=values)
            for values in side
        ]
        for side in sketches
    ]
    for number, each in enumerate(made[0]):
        theirs.insert(number, each)
    expected = {
        (row, number)
        for row, each in enumerate(made[1])
        for number in theirs.query(each)
        if each.jaccard(made[0][number]) >= LIKELY
    }
    rows, numbers = Index(sketches[0]).pairs(sketches[1])
    assert set(zip(rows.tolist(), numbers.tolist(), strict=True)) == expected
    assert len(expected) > 100


def test_a_sketch_says_how_much_two_texts_share() -> None:
    train = random_rows(200)
    held = edited(train)
    one, other = (sketch(map(" ".join, side)) for side in (train, held))
    estimates = (one == other).mean(axis=1)
    true = np.array([jaccard(a, b) for a, b in zip(train, held, strict=True)])
    assert np.abs(estimates - true).max() < 4.5 * np.sqrt(0.25 / (BANDS * ROWS))
    assert np.abs(estimates - true).mean() < 0.03


def test_pairs_within_a_set_are_those_of_every_pair() -> None:
    rows = random_rows(120)
    rows += edited(rows)
    texts = [" ".join(row) for row in rows]
    left, right = pairs_within(sketch(texts))
    found = {
        (one, two) for one, two, _ in verify(left, right, texts.__getitem__, texts.__getitem__)
    }
    expected = {
        (one, two)
        for two in range(len(rows))
        for one in range(two)
        if jaccard(rows[one], rows[two]) >= NEAR
    }
    assert found == expected
    assert len(expected) > 50
    assert right.tolist() == sorted(right.tolist())


def test_looking_for_pairs_takes_some_bytes_a_row() -> None:
    texts = [" ".join(row) for row in random_rows(4000, words=8)]
    sketch(texts[:1])  # what is imported late is imported
    tracemalloc.start()
    pairs_within(sketch(iter(texts), len(texts)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / len(texts) < 250


@pytest.mark.parametrize("count", [0, 1])
def test_a_set_of_one_has_no_pairs(count: int) -> None:
    sketches = sketch(["a b c"] * count)
    assert [len(places) for places in pairs_within(sketches)] == [0, 0]
    assert [len(places) for places in Index(sketches[:0]).pairs(sketches)] == [0, 0]


def test_a_crowd_of_like_rows_is_not_compared_pair_by_pair() -> None:
    template = " ".join(WORDS[:60])
    texts = [f"{template} number {number}" for number in range(400)]
    left, _ = pairs_within(sketch(texts))
    assert len(left) < 400 * 399 // 8
    assert len(Index(sketch(texts)).pairs(sketch(texts))[0]) < 400 * 400 // 4
