"""The numbers of a formula that do best by a measure, under a constraint and within a budget.

An evaluation costs a pass over rows and gives no gradient; the measure is smooth and has no noise.
So one number is looked at from end to end and then narrowed down, the largest that keeps a
constraint is found by halving, and several are searched by models of second degree in a region of
trust (COBYQA of scipy), which for 20 to 60 evaluations leave coordinate search and CMA-ES far
behind. What keeps the constraint always stands before what does not.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Bounds = tuple[float, float]
FINEST = 1e-3
"""Share of a range below which two numbers are not told apart."""
MOST_LOOKS = 9
"""Places at which a range is looked at before it is narrowed down."""
FIRST_STEP = 0.25
"""Share of each range that models of several numbers first reach over."""
GOLDEN = (5**0.5 - 1) / 2
PLENTY = 10.0
"""A margin that is as good as any larger one; solvers take no infinite ones."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What some numbers gave."""

    objective: float
    """The lower, the better."""
    margin: float = PLENTY
    """By how much the tightest constraint is kept; below 0 it is broken."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What both were worked out from, for the record."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation."""

    numbers: tuple[float, ...]
    measured: Measured

    @property
    def feasible(self) -> bool:
        """Whether every constraint is kept."""
        return self.measured.margin >= 0

    @property
    def rank(self) -> tuple[bool, float]:
        """The lower, the better: constraints first, then what is sought."""
        it = self.measured
        return not self.feasible, it.objective if self.feasible else -it.margin


@dataclass(frozen=True, slots=True)
class Found:
    """The best numbers, and everything that was tried on the way to them."""

    best: Trial
    trials: tuple[Trial, ...]
    way: str
    """`narrowing`, `bisection` or `models`."""
    note: str = ""
    """What should make a reader doubt; empty where nothing does."""


class SpentError(Exception):
    """The budget is used up."""


class _Ledger:
    """Measures each place once, and no more of them than the budget allows."""

    def __init__(self, measure: Callable[[tuple[float, ...]], Measured], budget: int) -> None:
        self._measure = measure
        self._budget = budget
        self._known: dict[tuple[float, ...], Trial] = {}

    def at(self, numbers: Sequence[float]) -> Trial:
        """The trial with these numbers.

        Raises:
            SpentError: it would be one too many.
        """
        place = tuple(float(number) for number in numbers)
        if place not in self._known:
            if len(self._known) == self._budget:
                raise SpentError
            self._known[place] = Trial(place, self._measure(place))
        return self._known[place]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All so far, in their order."""
        return tuple(self._known.values())


def search(
    measure: Callable[[tuple[float, ...]], Measured],
    bounds: Sequence[Bounds],
    start: Sequence[float],
    *,
    budget: int,
    seed: int = 0,
    largest: bool = False,
) -> Found:
    """The best numbers found within a budget; the same ones for the same measure and seed.

    Args:
        measure: what numbers give.
        bounds: from where to where each may go.
        start: numbers to begin with, which are moved into the bounds.
        budget: most evaluations.
        seed: of further starts, where the budget allows some.
        largest: whether to look for the number furthest from 0 that keeps the constraint; of
            several numbers, or of one whose range has 0 inside, the best is looked for instead.
    """
    ledger = _Ledger(measure, budget)
    begin = [min(max(s, low), high) for s, (low, high) in zip(start, bounds, strict=True)]
    way, walk = "models", partial(_model, ledger, bounds, begin, np.random.default_rng(seed))
    if len(bounds) == 1:
        (low, high) = bounds[0]
        one_sided = low >= 0 or high <= 0
        way, walk = "narrowing", partial(_narrow, ledger, low, high, begin[0], budget)
        if largest and one_sided:
            near, far = sorted((low, high), key=abs)
            way, walk = "bisection", partial(_halve, ledger, near, far, budget)
    with suppress(SpentError):
        walk()
    best = min(ledger.trials, key=lambda trial: trial.rank)
    note = _doubt(ledger.trials) if way == "bisection" else ""
    return Found(best, ledger.trials, way, note)


def _looks(low: float, high: float, budget: int) -> list[float]:
    """Places evenly apart, the ends among them, for about a third of the budget."""
    count = max(3, min(MOST_LOOKS, budget // 3))
    return [float(place) for place in np.linspace(low, high, count)]


def _narrow(ledger: _Ledger, low: float, high: float, start: float, budget: int) -> None:
    """Look from end to end, then narrow down by the golden section around the best place."""
    places = sorted({start, *_looks(low, high, budget)})
    ledger.at((start,))
    ranks = {place: ledger.at((place,)).rank for place in places}
    middle = places.index(min(places, key=lambda place: ranks[place]))
    left, right = places[max(middle - 1, 0)], places[min(middle + 1, len(places) - 1)]
    while right - left > FINEST * (high - low):
        inner = [right - GOLDEN * (right - left), left + GOLDEN * (right - left)]
        one, other = (ledger.at((place,)).rank for place in inner)
        left, right = (left, inner[1]) if one <= other else (inner[0], right)


def _halve(ledger: _Ledger, near: float, far: float, budget: int) -> None:
    """Look from near to far, then halve between the last that keeps and the first that breaks."""
    places = _looks(near, far, budget)
    trials = [ledger.at((place,)) for place in places]
    broken = next((at for at, trial in enumerate(trials) if not trial.feasible), None)
    if not broken:  # the whole range keeps the constraint, or not even its near end does
        return
    keeps, breaks = places[broken - 1], places[broken]
    while abs(breaks - keeps) > FINEST * abs(far - near):
        middle = (keeps + breaks) / 2
        if ledger.at((middle,)).feasible:
            keeps = middle
        else:
            breaks = middle


def _model(
    ledger: _Ledger, bounds: Sequence[Bounds], start: Sequence[float], random: np.random.Generator
) -> None:
    """Models of second degree in a region of trust, from one start after another."""
    low, wide = (np.array(each, np.float64) for each in zip(*bounds, strict=True))
    wide = wide - low

    def at(shares: Any) -> Trial:
        return ledger.at(np.clip(low + shares * wide, low, low + wide).tolist())

    begin = (np.array(start) - low) / wide
    while True:
        before = len(ledger.trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scipy, where a region shrinks to nothing
            minimize(
                lambda shares: at(shares).measured.objective,
                begin,
                method="COBYQA",
                bounds=[(0.0, 1.0)] * len(bounds),
                constraints=[{"type": "ineq", "fun": lambda s: min(at(s).measured.margin, PLENTY)}],
                options={"initial_tr_radius": FIRST_STEP, "final_tr_radius": FINEST},
            )
        if len(ledger.trials) == before:  # every place on the way was known
            return
        begin = random.uniform(size=len(bounds))


def _doubt(trials: Sequence[Trial]) -> str:
    """Why halving may have missed a better number; empty where all goes one way."""
    ordered = sorted(trials, key=lambda trial: abs(trial.numbers[0]))
    turns = [not one.feasible and other.feasible for one, other in pairwise(ordered)]
    if any(turns):
        again = ordered[turns.index(True) + 1].numbers[0]
        return f"the constraint is broken and kept again further on, at {again:g}"
    falls = [other.measured.objective <= one.measured.objective for one, other in pairwise(ordered)]
    kept = [trial.feasible for trial in ordered]
    until = kept.index(False) if False in kept else len(kept)
    if not all(falls[: max(until - 1, 0)]):
        return "the objective does not change in one direction as the number grows"
    return ""
