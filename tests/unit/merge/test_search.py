"""The search of numbers: it finds what there is to find, keeps constraints, and repeats itself."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.merge.search import FINEST, Measured, Trial, search

Surface = Callable[[tuple[float, ...]], Measured]


def counted(measure: Surface) -> tuple[Surface, list[tuple[float, ...]]]:
    asked: list[tuple[float, ...]] = []

    def told(numbers: tuple[float, ...]) -> Measured:
        asked.append(numbers)
        return measure(numbers)

    return told, asked


@given(peak=st.floats(-1, 2), low=st.floats(-1, 0), width=st.floats(0.5, 3))
def test_one_number_is_narrowed_down(peak: float, low: float, width: float) -> None:
    found = search(
        lambda x: Measured((x[0] - peak) ** 2 + 0.3 * abs(x[0] - peak)),
        [(low, low + width)],
        [0.0],
        budget=40,
    )
    wanted = min(max(peak, low), low + width)
    assert found.way == "narrowing"
    assert found.best.numbers[0] == pytest.approx(wanted, abs=2 * FINEST * width)


def test_of_two_valleys_the_deeper_one_is_found() -> None:
    def valleys(x: tuple[float, ...]) -> Measured:
        return Measured(min((x[0] - 0.2) ** 2, (x[0] - 1.7) ** 2 - 0.1))

    found = search(valleys, [(0.0, 2.0)], [0.2], budget=30)
    assert found.best.numbers[0] == pytest.approx(1.7, abs=0.01)


@given(limit=st.floats(0.05, 2.9), budget=st.integers(16, 40), sign=st.sampled_from([-1.0, 1.0]))
def test_halving_finds_the_largest_number_that_keeps_the_constraint(
    limit: float, budget: int, sign: float
) -> None:
    found = search(
        lambda x: Measured(-abs(x[0]), limit**2 - x[0] ** 2),
        [(min(0.0, 3 * sign), max(0.0, 3 * sign))],
        [sign],
        budget=budget,
        largest=True,
    )
    assert found.way == "bisection"
    assert found.best.feasible
    assert found.note == ""
    number = sign * found.best.numbers[0]
    assert limit - 2 * FINEST * 3 - 1e-9 <= number <= limit
    assert len(found.trials) <= budget


def test_halving_needs_few_evaluations() -> None:
    """Five looks, then eight halvings of a fourth of the range to a thousandth of it."""
    measure, asked = counted(lambda x: Measured(-x[0], 1.234 - x[0]))
    search(measure, [(0.0, 4.0)], [1.0], budget=15, largest=True)
    assert len(asked) == 13
    assert len(set(asked)) == 13


def test_halving_says_where_it_cannot_be_trusted() -> None:
    """A constraint that is kept again further on, and an objective that turns."""
    again = search(
        lambda x: Measured(-x[0], 1.0 if x[0] < 0.5 or 1.4 < x[0] < 1.6 else -1.0),
        [(0.0, 2.0)],
        [0.0],
        budget=27,
        largest=True,
    )
    assert "broken and kept again further on, at 1.5" in again.note
    assert again.best.numbers == (1.5,)
    turning = search(
        lambda x: Measured((x[0] - 0.7) ** 2, 1.5 - x[0]),
        [(0.0, 2.0)],
        [0.0],
        budget=27,
        largest=True,
    )
    assert "does not change in one direction" in turning.note


def test_a_whole_range_that_keeps_the_constraint_ends_at_its_far_end() -> None:
    found = search(lambda x: Measured(x[0], 1.0), [(-2.0, 0.0)], [-1.0], budget=20, largest=True)
    assert found.best.numbers == (-2.0,)
    assert len(found.trials) == 6


def test_what_breaks_a_constraint_stands_behind_all_that_keep_it() -> None:
    trials = [
        Trial((1.0,), Measured(-9.0, -0.5)),
        Trial((2.0,), Measured(9.0, 0.0)),
        Trial((3.0,), Measured(-9.0, -0.1)),
        Trial((4.0,), Measured(3.0, 2.0)),
    ]
    ordered = sorted(trials, key=lambda trial: trial.rank)
    assert [trial.numbers[0] for trial in ordered] == [4.0, 2.0, 3.0, 1.0]


def smooth(seed: int, count: int, *, constrained: bool) -> Surface:
    """A bowl with some waves, and perhaps a ball around another place that must not be left."""
    random = np.random.default_rng(seed)
    turns = random.standard_normal((2, count, count))
    bowls = [turn @ turn.T / count + 0.3 * np.eye(count) for turn in turns]
    lowest, middle = random.uniform(0.2, 0.9, count), random.uniform(0.0, 0.4, count)
    waves, phases = 3 * random.standard_normal((3, count)), random.uniform(0, 6, 3)
    allowed = random.uniform(0.05, 0.3)

    def measure(numbers: tuple[float, ...]) -> Measured:
        at = np.array(numbers)
        bowl = (at - lowest) @ bowls[0] @ (at - lowest) + 0.5 * ((at - lowest) ** 4).sum()
        margin = allowed - (at - middle) @ bowls[1] @ (at - middle)
        objective = float(bowl + 0.02 * np.cos(waves @ at + phases).sum())
        return Measured(objective, float(margin)) if constrained else Measured(objective)

    return measure


def compass(measure: Surface, count: int, budget: int) -> Measured:
    """The rival: one number at a time, in steps that halve where nothing gets better."""
    asked, step = 1, 0.25
    best = Trial((0.5,) * count, measure((0.5,) * count))
    while asked < budget and step > FINEST:
        moved = False
        for place in range(count):
            for sign in (1, -1):
                numbers = list(best.numbers)
                numbers[place] = float(np.clip(numbers[place] + sign * step, 0, 1))
                other = Trial(tuple(numbers), measure(tuple(numbers)))
                asked += 1
                if other.rank < best.rank:
                    best, moved = other, True
                    break
        step = step if moved else step / 2
    return best.measured


@pytest.mark.parametrize("budget", [20, 40, 60])
@pytest.mark.parametrize("constrained", [False, True])
def test_several_numbers_are_found_better_than_one_at_a_time(
    *, budget: int, constrained: bool
) -> None:
    gains, feasible = [], []
    for seed in range(12):
        count = 2 + seed % 3
        measure = smooth(seed, count, constrained=constrained)
        found = search(measure, [(0.0, 1.0)] * count, [0.5] * count, budget=budget)
        assert len(found.trials) <= budget
        rival = compass(measure, count, budget)
        feasible.append(found.best.feasible)
        if found.best.feasible and rival.margin >= 0:
            gains.append(rival.objective - found.best.measured.objective)
    assert sum(feasible) >= 11
    assert np.median(gains) > -1e-6
    assert np.mean(gains) > 0


def test_a_budget_that_is_left_is_spent_on_other_starts() -> None:
    """Two bowls; the start lies in the shallow one."""

    def bowls(x: tuple[float, ...]) -> Measured:
        near = (x[0] - 0.2) ** 2 + (x[1] - 0.2) ** 2
        far = (x[0] - 0.9) ** 2 + (x[1] - 0.9) ** 2 - 0.2
        return Measured(min(near, far))

    found = search(bowls, [(0.0, 1.0), (0.0, 1.0)], [0.1, 0.1], budget=120)
    assert found.best.numbers == pytest.approx((0.9, 0.9), abs=0.01)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_search_takes_the_same_way(count: int) -> None:
    measure = smooth(7, count, constrained=True)
    one, other = (
        search(measure, [(0.0, 1.0)] * count, [0.5] * count, budget=50, seed=3) for _ in range(2)
    )
    assert one == other
    assert all(0 <= number <= 1 for trial in one.trials for number in trial.numbers)
