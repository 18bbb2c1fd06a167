"""Every schedule rises to its peak, ends low where it should, and is never zero at first."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.recipe.sections.train import SCHEDULES
from peftkit.train.schedule import SHAPES, learning_rate

NAMES = sorted(SHAPES)


def curve(name: str, steps: int, warmup: float, peak: float = 2.0) -> list[float]:
    return [
        learning_rate(name, step, steps=steps, peak=peak, warmup=warmup)
        for step in range(1, steps + 1)
    ]


def test_the_recipe_offers_what_there_is() -> None:
    assert sorted(get_args(SCHEDULES)) == NAMES


@given(
    name=some.sampled_from(NAMES),
    steps=some.integers(1, 300),
    warmup=some.floats(0, 0.9, allow_nan=False),
)
def test_rates_are_positive_and_never_above_the_peak(name: str, steps: int, warmup: float) -> None:
    rates = curve(name, steps, warmup)
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    assert rates[0] > 0
    assert all(math.isfinite(rate) for rate in rates)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "warmup-stable-decay"])
def test_the_peak_is_reached_when_warm_up_ends(name: str) -> None:
    rates = curve(name, 100, 0.1)
    assert rates[9] == 2.0
    assert rates[4] == pytest.approx(1.0)


def test_known_values() -> None:
    assert curve("linear", 10, 0.0)[5] == pytest.approx(2.0 * 0.5)
    assert curve("cosine", 100, 0.0)[50] == pytest.approx(1.0)
    assert curve("inverse-sqrt", 400, 0.25)[399] == pytest.approx(2.0 * math.sqrt(100 / 400))
    assert curve("warmup-stable-decay", 100, 0.0)[79] == 2.0
    assert curve("warmup-stable-decay", 100, 0.0)[90] == pytest.approx(1.0)
    assert curve("slanted-triangular", 100, 0.1)[99] == pytest.approx(2.0 / 32)
    assert curve("onecycle", 100, 0.25)[24] == pytest.approx(2.0)
    assert curve("onecycle", 100, 0.25)[99] == pytest.approx(2e-5)
    assert set(curve("constant", 50, 0.0)) == {2.0}
