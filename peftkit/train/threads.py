"""How many CPU threads to use: measured, because two can be many times slower than one."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import torch

from peftkit.base.machine import local_processes

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 3
WORTH_IT = 0.75
"""More threads are taken only when they cut the time at least to this share."""
SHORT_STEP = 0.25
"""Seconds below which a step stays on one thread, however fast more are just now.

More threads wait for each other many times a step, and a single busy neighbor makes each wait last
a time slice: the quickstart's step took 63 ms with one thread, 42 ms with two alone on the machine,
and 6 s with two as soon as something else ran.
"""


def candidate_threads() -> list[int]:
    """One thread, and all that this process may use: its share of those of the machine."""
    allowed = os.environ.get("OMP_NUM_THREADS")
    share = len(os.sched_getaffinity(0)) // local_processes()
    every = int(allowed) if allowed and allowed.isdigit() else share
    return sorted({1, max(every, 1)})


def measure_threads(step: Callable[[], object]) -> dict[int, float]:
    """Best wall seconds of `step` at each thread count, interleaved so that noise is shared.

    A step that is short with one thread is not tried with more.
    """
    counts = candidate_threads()
    best = dict.fromkeys(counts, float("inf"))
    for count in counts:
        _time(step, count)  # warm-up
        best[count] = _time(step, count)
        if best[count] < SHORT_STEP:
            return {count: best[count]}
    for _ in range(ROUNDS - 1):
        for count in counts:
            best[count] = min(best[count], _time(step, count))
    return best


def choose_threads(measured: dict[int, float]) -> int:
    """The fewest threads unless more are clearly faster."""
    fewest = min(measured)
    quickest = min(measured, key=lambda count: (measured[count], count))
    return quickest if measured[quickest] < WORTH_IT * measured[fewest] else fewest


def explain_threads(measured: dict[int, float]) -> str:
    """What was measured, and why that settles it."""
    shown = ", ".join(f"{1000 * s:.0f} ms with {count}" for count, s in sorted(measured.items()))
    if len(measured) > 1:
        return f"a step took {shown}"
    if len(candidate_threads()) == 1:
        return f"a step took {shown}; this process may use no more"
    return f"a step took {shown}; one so short stays on one thread"


def _time(step: Callable[[], object], count: int) -> float:
    torch.set_num_threads(count)
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
