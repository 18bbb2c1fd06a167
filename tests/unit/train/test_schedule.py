"""Every schedule rises to its peak, ends low where it should, and is never zero at first."""

import math
from typing import get_args

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as some
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from peftkit.recipe.sections.train import SCHEDULES, TrainSection
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


def factors(scheduler: LRScheduler, steps: int) -> list[float]:
    """What somebody else's schedule multiplies the peak by, from update to update."""
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def an_optimizer() -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@given(steps=some.integers(10, 200), rising=some.integers(2, 9))
def test_one_cycle_is_that_of_torch_with_the_numbers_of_fastai(steps: int, rising: int) -> None:
    wanted = OneCycleLR(
        an_optimizer(), 1.0, steps, pct_start=rising / steps, div_factor=25, final_div_factor=4000
    )
    found = curve("onecycle", steps, rising / steps, peak=1.0)
    assert found == pytest.approx(factors(wanted, steps), rel=1e-9)


@given(steps=some.integers(10, 200), rising=some.integers(1, 9))
def test_the_fall_is_that_of_transformers(steps: int, rising: int) -> None:
    """Which begins at 0, and so is one update behind on the way up."""
    down = (steps - rising) / 5
    theirs = {
        "linear": transformers.get_linear_schedule_with_warmup(an_optimizer(), rising, steps),
        "cosine": transformers.get_cosine_schedule_with_warmup(an_optimizer(), rising, steps),
        "constant": transformers.get_constant_schedule_with_warmup(an_optimizer(), rising),
        "warmup-stable-decay": transformers.get_wsd_schedule(
            an_optimizer(), rising, down, num_stable_steps=4 * down, decay_type="linear"
        ),
    }
    for name, scheduler in theirs.items():
        wanted = factors(scheduler, steps)
        found = curve(name, steps, rising / steps, peak=1.0)
        assert found[: rising - 1] == pytest.approx(wanted[1:rising], abs=1e-9)
        assert found[rising:] == pytest.approx(wanted[rising:], abs=1e-9)


@given(steps=some.integers(10, 200), rising=some.integers(1, 9))
def test_the_inverse_root_is_that_of_transformers(steps: int, rising: int) -> None:
    scheduler = transformers.get_inverse_sqrt_schedule(an_optimizer(), rising)
    wanted = factors(scheduler, steps + 1)[1:]  # theirs begins at 0
    assert curve("inverse-sqrt", steps, rising / steps, peak=1.0) == pytest.approx(wanted)


@given(cut=some.integers(1, 20))
def test_the_slanted_triangle_is_that_of_its_paper(cut: int) -> None:
    """Howard and Ruder (2018), equation 3, with their cut_frac and ratio."""
    steps, cut_frac, ratio = 10 * cut, 0.1, 32
    for step, found in enumerate(curve("slanted-triangular", steps, cut_frac, peak=1.0), 1):
        p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / cut_frac - 1))
        assert found == pytest.approx((1 + p * (ratio - 1)) / ratio)


@pytest.mark.parametrize(
    ("schedule", "share"), [("onecycle", 0.25), ("slanted-triangular", 0.1), ("cosine", 0.05)]
)
def test_the_usual_warm_up_is_that_of_the_schedule(schedule: str, share: float) -> None:
    assert TrainSection.model_validate({"schedule": schedule}).warmup == share
    own = TrainSection.model_validate({"schedule": schedule, "warmup": 0.3})
    assert own.warmup == 0.3


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
