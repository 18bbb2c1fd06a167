"""Learning-rate schedules: each a pure function of the step, so a resumed run needs no state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DECAY_SHARE = 0.2
"""Share of the steps in which warmup-stable-decay comes down."""
ROUNDING = 1e-9
"""Part of a step that is no step: 3 / 187 of 187 is a hair more than 3."""
SLANT = 32.0
"""How far below its peak a slanted triangle starts and ends (Howard & Ruder, 2018)."""


def learning_rate(name: str, step: int, *, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of update `step`, counted from 1; never zero on the first one."""
    return peak * SHAPES[name](step, math.ceil(warmup * steps - ROUNDING), steps)


def _after_warmup(fall: Callable[[float], float]) -> Callable[[int, int, int], float]:
    """A straight rise over `rising` steps, then `fall` of the share done; 0 just after the end."""

    def shape(step: int, rising: int, steps: int) -> float:
        if step <= rising:
            return step / rising
        return fall((step - rising - 1) / max(steps - rising, 1))

    return shape


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _stable_then_down(done: float) -> float:
    return min(1.0, (1 - done) / DECAY_SHARE)


def _inverse_sqrt(step: int, rising: int, steps: int) -> float:
    del steps
    return step / rising if step <= rising else math.sqrt(max(rising, 1) / step)


def _one_cycle(step: int, rising: int, steps: int) -> float:
    """Cosine from 1/25 up to the peak, then down to 1e-5 of it (fastai's shape)."""
    if step < rising:
        return 1 / 25 + (1 - 1 / 25) * (1 - _cosine((step - 1) / (rising - 1)))
    return 1e-5 + (1 - 1e-5) * _cosine((step - rising) / max(steps - rising, 1))


def _slanted_triangle(step: int, rising: int, steps: int) -> float:
    height = step / rising if step <= rising else 1 - (step - rising) / max(steps - rising, 1)
    return (1 + height * (SLANT - 1)) / SLANT


SHAPES: dict[str, Callable[[int, int, int], float]] = {
    "constant": _after_warmup(lambda _: 1.0),
    "linear": _after_warmup(lambda done: 1 - done),
    "cosine": _after_warmup(_cosine),
    "warmup-stable-decay": _after_warmup(_stable_then_down),
    "inverse-sqrt": _inverse_sqrt,
    "onecycle": _one_cycle,
    "slanted-triangular": _slanted_triangle,
}
