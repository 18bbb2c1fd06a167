"""Shares hold at every place, each row comes once before any comes twice, and nothing is stored."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.order import Mixed, Part, Shuffled, permute, settle_shares


@some.composite
def mixtures(draw: some.DrawFn) -> Mixed:
    """A few parts of a few rows each, of lengths and shares of their own."""
    lengths = draw(
        some.lists(some.lists(some.integers(1, 40), min_size=1, max_size=9), min_size=1, max_size=4)
    )
    weights = draw(some.lists(some.floats(0.05, 1.0), min_size=len(lengths), max_size=len(lengths)))
    shares = settle_shares((), weights, 1.0)
    first, parts = 0, []
    for own, share in zip(lengths, shares, strict=True):
        rows = np.arange(first, first + len(own))
        parts.append(Part(rows, np.array(own, np.float64), share))
        first += len(own)
    return Mixed(
        tuple(parts), draw(some.integers(0, 99)), draw(some.sampled_from(["all", "first"]))
    )


def line(mixed: Mixed, places: int) -> list[int]:
    return [mixed.at(place) for place in range(places)]


@given(mixed=mixtures(), places=some.integers(1, 120))
def test_at_every_place_each_part_has_its_share_to_a_row(mixed: Mixed, places: int) -> None:
    sizes = np.concatenate([part.sizes for part in mixed.parts])
    longest = [float(part.sizes.max()) for part in mixed.parts]
    taken = np.zeros(len(sizes))
    for row in line(mixed, places):
        taken[row] += sizes[row]
        total = taken.sum()
        for part, own in zip(mixed.parts, longest, strict=True):
            away = abs(taken[part.rows].sum() - part.share * total)
            assert away <= own / 2 + part.share * sum(longest) / 2 + 1e-6


@given(mixed=mixtures(), places=some.integers(1, 120))
def test_each_row_of_a_part_comes_once_before_any_comes_twice(mixed: Mixed, places: int) -> None:
    times: Counter[int] = Counter()
    for row in line(mixed, places):
        times[row] += 1
        own = next(part.rows.tolist() for part in mixed.parts if row in part.rows)
        assert times[row] <= 1 + min(times[other] for other in own)


@given(mixed=mixtures(), places=some.lists(some.integers(0, 400), min_size=1, max_size=9))
def test_what_stands_at_a_place_depends_on_the_place_alone(mixed: Mixed, places: list[int]) -> None:
    jumping = [mixed.at(place) for place in places]
    other = Mixed(mixed.parts, mixed.seed, mixed.epoch)
    in_turn = line(other, max(places) + 1)
    assert jumping == [in_turn[place] for place in places]


@given(mixed=mixtures(), places=some.integers(0, 150))
def test_what_was_seen_is_counted_without_going_along(mixed: Mixed, places: int) -> None:
    rows = sum(len(part.rows) for part in mixed.parts)
    wanted = np.bincount(np.array(line(mixed, places), np.int64), minlength=rows)
    assert mixed.seen(places).tolist() == wanted.tolist()


@given(mixed=mixtures())
def test_an_epoch_ends_as_it_says(mixed: Mixed) -> None:
    places = int(mixed.places(1))
    times = mixed.seen(places)
    whole = [bool((times[part.rows] > 0).all()) for part in mixed.parts]
    again = [bool((times[part.rows] > 1).any()) for part in mixed.parts]
    if mixed.epoch == "all":
        assert all(whole)
        assert not all(again)
    else:
        assert any(whole)
        assert not any(again)


@given(mixed=mixtures(), epochs=some.integers(1, 5))
def test_epochs_have_about_as_many_places_each(mixed: Mixed, epochs: int) -> None:
    shortest = min(float(part.sizes.min()) for part in mixed.parts)
    spread = sum(float(part.sizes.max()) for part in mixed.parts) / shortest
    rows = sum(len(part.rows) for part in mixed.parts)
    assert abs(mixed.places(epochs) - epochs * mixed.places(1)) <= epochs * (rows + spread)


@given(rows=some.integers(1, 30), seed=some.integers(0, 99), places=some.integers(0, 100))
def test_one_part_alone_is_what_shuffling_is(rows: int, seed: int, places: int) -> None:
    alone = Mixed((Part(np.arange(rows), np.ones(rows), 1.0),), seed, "all")
    plain = Shuffled(rows, seed)
    assert line(alone, places) == [plain.at(place) for place in range(places)]
    assert alone.seen(rows).tolist() == plain.seen(rows).tolist() == [1] * rows
    assert plain.seen(places).sum() == places
    assert alone.places(2) == plain.places(2) == 2 * rows


@given(own=some.integers(1, 20), other=some.integers(1, 20), share=some.floats(0.05, 0.9))
def test_rows_beside_it_do_not_change_the_order_of_the_first_part(
    own: int, other: int, share: float
) -> None:
    parts = (
        Part(np.arange(own), np.full(own, 3.0), 1 - share),
        Part(np.arange(own, own + other), np.full(other, 5.0), share, counts=False),
    )
    mixed = Mixed(parts, 4, "all")
    rows = [row for row in line(mixed, int(mixed.places(2))) if row < own]
    assert rows == [int(row) for epoch in range(2) for row in permute(own, 4, epoch)]


def test_each_pass_has_an_order_of_its_own() -> None:
    mixed = Mixed((Part(np.arange(50), np.ones(50), 1.0),), 0, "all")
    first, second = line(mixed, 50), line(mixed, 100)[50:]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


sizes = some.lists(some.integers(1, 10**9), min_size=2, max_size=6)


@given(sizes=sizes)
def test_a_temperature_of_one_is_proportional_and_a_high_one_is_even(sizes: list[int]) -> None:
    whole = settle_shares(sizes, (), 1.0)
    assert whole == pytest.approx([size / sum(sizes) for size in sizes])
    assert settle_shares(sizes, (), 1e9) == pytest.approx([1 / len(sizes)] * len(sizes))


@given(sizes=sizes, temperature=some.floats(0.2, 50.0))
def test_shares_are_powers_of_the_sizes(sizes: list[int], temperature: float) -> None:
    shares = settle_shares(sizes, (), temperature)
    assert sum(shares) == pytest.approx(1.0)
    raised = [size ** (1 / temperature) for size in sizes]
    assert shares == pytest.approx([each / sum(raised) for each in raised])


def test_weights_are_taken_relative_to_each_other() -> None:
    assert settle_shares((1, 2), (3, 1), 1.0) == [0.75, 0.25]
