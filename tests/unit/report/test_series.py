"""Thinning keeps what matters; smoothing neither invents nor hides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.report import series

figures = st.floats(-1e6, 1e6)
values = st.lists(st.one_of(st.none(), figures), min_size=1, max_size=400)


@given(values, st.integers(4, 60))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float | None], most: int) -> None:
    kept = series.kept(values, most)
    assert kept == sorted(set(kept))
    assert {kept[0], kept[-1]} == {0, len(values) - 1}
    assert len(kept) <= max(most, 4)
    known = [value for value in values if value is not None]
    seen = [values[at] for at in kept if values[at] is not None]
    if known:
        assert (min(seen), max(seen)) == (min(known), max(known))


def test_a_long_stretch_without_figures_stays_a_gap() -> None:
    values: list[float | None] = [1.0] * 4000 + [None] * 2000 + [2.0] * 4000
    kept = series.kept(values, 100)
    assert any(values[at] is None for at in kept)


def test_a_single_spike_in_ten_thousand_steps_is_drawn() -> None:
    values: list[float | None] = [1.0] * 10_000
    values[6_173] = 50.0
    assert 6_173 in series.kept(values)


@given(values, st.integers(0, 12))
def test_a_mean_lies_among_what_it_averages(values: list[float | None], half: int) -> None:
    smooth = series.smoothed(values, 2 * half + 1)
    assert len(smooth) == len(values)
    for at, mean in enumerate(smooth):
        near = values[max(0, at - half) : at + half + 1]
        known = [value for value in near if value is not None]
        assert (mean is None) == (not known)
        if mean is not None:
            room = 1e-4
            assert min(known) - room <= mean <= max(known) + room


@given(st.lists(figures, min_size=9, max_size=60))
def test_smoothing_is_the_plain_average(values: list[float]) -> None:
    middle = len(values) // 2
    assert series.smoothed(values, 5)[middle] == pytest.approx(
        np.mean(values[middle - 2 : middle + 3]), abs=1e-4
    )


@pytest.mark.parametrize(("points", "width"), [(0, 1), (1, 1), (30, 1), (90, 3), (10_000, 333)])
def test_the_window_is_odd_and_grows(points: int, width: int) -> None:
    assert series.window(points) == width


@given(st.integers(0, 500), st.integers(2, 50))
def test_spread_is_even(points: int, most: int) -> None:
    chosen = series.spread(points, most)
    assert len(chosen) == min(points, most)
    assert chosen == sorted(set(chosen))
    if points > 1:
        assert (chosen[0], chosen[-1]) == (0, points - 1)
