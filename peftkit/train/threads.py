"""How many CPU threads to use: measured, because two can be many times slower than one."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 3
WORTH_IT = 0.9
"""More threads are taken only when they cut the time at least to this share."""


def candidate_threads() -> list[int]:
    """One thread, and all that this process may use."""
    allowed = os.environ.get("OMP_NUM_THREADS")
    every = int(allowed) if allowed and allowed.isdigit() else len(os.sched_getaffinity(0))
    return sorted({1, max(every, 1)})


def measure_threads(step: Callable[[], object]) -> dict[int, float]:
    """Best wall seconds of `step` at each thread count, interleaved so that noise is shared."""
    best = dict.fromkeys(candidate_threads(), float("inf"))
    if len(best) == 1:
        return {next(iter(best)): 0.0}
    for count in best:
        torch.set_num_threads(count)
        step()  # warm-up
    for _ in range(ROUNDS):
        for count in best:
            torch.set_num_threads(count)
            started = time.perf_counter()
            step()
            best[count] = min(best[count], time.perf_counter() - started)
    return best


def choose_threads(measured: dict[int, float]) -> int:
    """The fewest threads unless more are clearly faster."""
    fewest = min(measured)
    quickest = min(measured, key=lambda count: (measured[count], count))
    return quickest if measured[quickest] < WORTH_IT * measured[fewest] else fewest
