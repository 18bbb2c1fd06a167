"""Range test: train at rising learning rates, see where the loss falls, and put all back.

What is suggested is a figure of the curve alone, so the same run finds the same rate again. The
parameters train on copies of their numbers, so putting them back loses no bit.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import torch

from peftkit.errors import RecipeError
from peftkit.train.loop import DivergedError, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.nn import Parameter

    from peftkit.data.batch import Update
    from peftkit.train.loop import LossFunction

LOWEST, HIGHEST = 1e-7, 10.0
"""Between which learning rates the test goes, each a constant times the one before."""
TRIALS = 100
FIRST = 10
"""Trials whose learning rates move nothing yet."""
SMOOTHING = 0.9
"""Share of the smoothed loss that comes from before; what it starts from is divided out."""
MOST = 0.8
"""Share of its fall that the loss has made where a rate is suggested; see benchmarks/finder."""
WORSE = 4.0
"""How many times its best the smoothed loss may be before the test ends."""
CLEAR = 4.0
"""Times that the fall must be what the smoothed loss moves by chance."""
FEWEST_STEPS = 20
"""Steps of a run below which a test five times as long is not worth it."""
FEWEST_UPDATES = 4
"""Updates that the rows must make up: on fewer the test would see the same ones again and again."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One update of the test."""

    learning_rate: float
    loss: float
    smoothed: float

    @property
    def facts(self) -> dict[str, float]:
        """What `finder.json` says."""
        return asdict(self)


def rate_of(trial: int) -> float:
    """The learning rate of a trial, counted from 1."""
    return float(LOWEST * (HIGHEST / LOWEST) ** ((trial - 1) / (TRIALS - 1)))


def refuse_too_few(steps: int, rows: int, rows_a_step: int) -> None:
    """Say that a run is too short, or its rows too few, for a test to tell anything.

    Raises:
        RecipeError: so it is.
    """
    if steps < FEWEST_STEPS:
        raise RecipeError(
            f"train.learning_rate: find takes up to {TRIALS} updates, and the run has {steps} "
            f"steps; it is for runs of {FEWEST_STEPS} or more",
            hint="`--set train.learning_rate=2e-4`, or more `train.steps`",
        )
    if rows < FEWEST_UPDATES * rows_a_step:
        raise RecipeError(
            f"train.learning_rate: find needs rows for {FEWEST_UPDATES} updates of {rows_a_step}, "
            f"and there are {rows}",
            hint=f"`--set train.batch.rows={max(rows // FEWEST_UPDATES, 1)}`, or a number such as "
            "`--set train.learning_rate=2e-4`",
        )


def try_rates(
    model: Any,
    updates: Iterator[Update],
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float,
    seed: int,
    loss: LossFunction,
) -> list[Trial]:
    """The trials up to the one from which the loss is far from its best; `model` is changed."""
    steps = train(
        model,
        updates,
        optimizer,
        rate_of,
        steps=range(1, TRIALS + 1),
        max_grad_norm=max_grad_norm,
        seed=seed,
        loss=loss,
    )
    found: list[Trial] = []
    total = 0.0
    with suppress(DivergedError):
        for step in steps:
            total = SMOOTHING * total + (1 - SMOOTHING) * step.loss
            smoothed = total / (1 - SMOOTHING**step.step)
            found.append(Trial(step.learning_rate, step.loss, smoothed))
            if smoothed > WORSE * min(trial.smoothed for trial in found):
                break
    return found


@contextmanager
def untouched(model: Any, parameters: Mapping[str, Parameter]) -> Iterator[None]:
    """Inside, these parameters may train; afterwards they, all buffers and chance are as before."""
    numbers = {name: parameter.data for name, parameter in parameters.items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for parameter in parameters.values():
        parameter.data = parameter.data.clone()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for name, parameter in parameters.items():
            parameter.data, parameter.grad = numbers[name], None
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def suggest(trials: Sequence[Trial]) -> float:
    """The learning rate at which the loss has made most of its way down.

    Raises:
        RecipeError: it made none that stands out from how much updates differ anyway.
    """
    start, lowest = _start_of(trials), min(trial.smoothed for trial in trials)
    fall = start - lowest
    if len(trials) < FIRST or fall <= CLEAR * _spread(trials[:FIRST]):
        raise RecipeError(
            f"train.learning_rate: find saw no learning rate at which the loss falls: from "
            f"{start:.3f} to {lowest:.3f} at best",
            hint="`peftkit preview` shows what carries loss; more `train.batch.rows` make less "
            "noise, and `--set train.learning_rate=2e-4` goes without a test",
        )
    wanted = start - MOST * fall
    return next(trial.learning_rate for trial in trials if trial.smoothed <= wanted)


def _start_of(trials: Sequence[Trial]) -> float:
    """The loss while learning rates are too low to move anything."""
    return fmean(trial.loss for trial in trials[:FIRST])


def _spread(trials: Sequence[Trial]) -> float:
    """How much updates differ by the rows that they see, once smoothed."""
    left = math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING))
    return pstdev(trial.loss for trial in trials) * left
