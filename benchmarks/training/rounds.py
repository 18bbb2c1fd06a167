"""Arms side by side: gated, watched for what they keep, then timed in turns A B C A B C."""

from __future__ import annotations

import gc
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from clock import cpu_seconds, measure_gemm, watch_kept
from documents import count_tokens
from flops import count_operations
from gate import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from arm import Arm, Reading, Work
    from flops import Sizes

    from peftkit.data.example import Example

UPDATE_ROWS = 16
"""Documents of an optimizer update: what a recipe has unless it says otherwise."""
DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One arm's way through all documents."""

    seconds: float
    losses: list[float]
    """Of each update, before it."""


def judge(
    arms: Mapping[str, Arm],
    documents: Sequence[Example],
    reference: Callable[[Arm], Reading],
) -> dict[str, Any]:
    """How far each arm is from its reference, and what it keeps for backward meanwhile."""
    found = {}
    for name, arm in arms.items():
        arm.reset()
        with watch_kept(arm.model) as kept:
            reading = arm.read(documents)
        found[name] = {
            "equality": asdict(compare(reading, reference(arm), arm.work.dtype)),
            "kept_bytes_per_token": round(kept.total / count_tokens(documents)),
            "kept_bytes_peak": kept.peak,
        }
    return found


def time_rounds(
    arms: Mapping[str, Arm], documents: Sequence[Example], sizes: Sizes, rounds: int
) -> dict[str, Any]:
    """Every arm takes every epoch; the first one is cold and stays out of the median."""
    taken: dict[str, list[Epoch]] = {name: [] for name in arms}
    gemm: dict[str, list[float]] = {name_of(dtype): [] for dtype in DTYPES}
    for arm in arms.values():
        arm.reset()
    for number in range(rounds + 1):
        updates = shuffle_updates(documents, seed=number)
        for dtype in DTYPES:
            gemm[name_of(dtype)].append(measure_gemm(dtype))
        for name, arm in arms.items():
            gc.collect()
            steps = [arm.step(update) for update in updates]
            taken[name].append(Epoch(sum(s.seconds for s in steps), [s.loss for s in steps]))
    best = {name: statistics.median(rates) for name, rates in gemm.items()}
    speeds = {
        name: _summarize(epochs, documents, sizes, arms[name].work, best)
        for name, epochs in taken.items()
    }
    return {"gemm_per_second": best, "arms": speeds}


def shuffle_updates(documents: Sequence[Example], *, seed: int) -> list[list[Example]]:
    """The documents in an order of their own, in updates."""
    order = np.random.default_rng(seed).permutation(len(documents))
    shuffled = [documents[index] for index in order]
    return [shuffled[first : first + UPDATE_ROWS] for first in range(0, len(shuffled), UPDATE_ROWS)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, range, and every value in its order."""
    middle = statistics.median(values)
    return {"median": middle, "low": min(values), "high": max(values), "rounds": list(values)}


def time_functions(
    functions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """CPU seconds of each function in each warm round, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            started = cpu_seconds()
            function()
            if number:
                seconds[name].append(cpu_seconds() - started)
    return seconds


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16`, without the `torch.`."""
    return str(dtype).removeprefix("torch.")


def _summarize(
    epochs: Sequence[Epoch],
    documents: Sequence[Example],
    sizes: Sizes,
    work: Work,
    gemm: Mapping[str, float],
) -> dict[str, Any]:
    cold, *warm = [count_tokens(documents) / epoch.seconds for epoch in epochs]
    pace = spread(warm)
    operations = count_operations(sizes, documents, work) / count_tokens(documents)
    rate = operations * pace["median"]
    return {
        "dtype": name_of(work.dtype),
        "tokens_per_second": pace,
        "tokens_per_second_cold": cold,
        "model_operations_per_token": operations,
        "share_of_gemm": rate / gemm[name_of(work.dtype)],
        "losses": [statistics.mean(epoch.losses) for epoch in epochs],
    }
