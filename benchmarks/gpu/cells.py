"""One cell of the grid: its arms warmed up, weighed, timed in alternating blocks, profiled."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from documents import LONGEST, count_tokens, draw_documents
from flops import count_operations
from meter import own_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from contenders import Contender, Setting
    from flops import Sizes
    from meter import Memory, Meter

    from peftkit.data.example import Example

UPDATES = 16
"""Different updates, in turn; every arm begins a block with the same one."""
DOCUMENT_SEED = 1
WARM_SHARE = 0.3
"""Most of an arm's time that its warm-up may take."""
LEAST_WARM = 2
LEAST = 10.0
"""Seconds below which nothing is begun."""
LEAST_ROUNDS = 2
SHOWN = 300
"""Characters of an error."""
PROFILED_STEPS = 3
FAILED = "failed: "
"""What a reason begins with that is neither time nor memory."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured where time allows."""

    warm_up: int = 10
    rounds: int = 5
    steps: int = 6
    """Timed steps of a block; one more comes before, to find its memory again."""
    gemm: int = 8192


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring takes, whatever the cell."""

    meter: Meter
    effort: Effort
    end: float
    """When all must be over, by `time.monotonic`."""

    def left(self) -> float:
        """Seconds until then."""
        return self.end - time.monotonic()


@dataclass(slots=True)
class _Arm:
    """One arm in one cell."""

    arm: Contender
    seconds: float = 0.0
    """Of a step, as far as known."""
    rounds: int = 0
    steps: int = 0
    taken: list[list[tuple[float, int, float]]] = field(default_factory=list)
    """Of each block, its steps: seconds, real tokens, model operations."""
    facts: dict[str, Any] = field(default_factory=dict)


def draw_updates(tokens: int, vocabulary: int) -> list[list[Example]]:
    """Documents as they come, as many an update as one packed micro-batch holds."""
    waiting = draw_documents(UPDATES * tokens // 64, vocabulary, seed=DOCUMENT_SEED)
    updates, current = [], []
    for document in waiting:
        if count_tokens(current) + document.length > max(tokens, LONGEST):
            updates.append(current)
            current = []
        current.append(document)
    return updates[:UPDATES]


def measure_cell(
    makers: Mapping[str, Callable[[], Contender]],
    setting: Setting,
    sizes: Sizes,
    vocabulary: int,
    seconds: float,
    bench: Bench,
) -> dict[str, Any]:
    """Every arm in about so many seconds; what does not fit into memory or time is named."""
    updates = draw_updates(setting.tokens, vocabulary)
    gemm = bench.meter.measure_gemm(bench.effort.gemm)
    arms: dict[str, _Arm] = {}
    left_out = {}
    for name, make in makers.items():
        if bench.left() < min(LEAST, seconds):
            left_out[name] = f"time: {bench.left():.0f} s were left"
            continue
        found = attempt(lambda make=make: _warm_up(make(), setting, updates, seconds, bench))
        if isinstance(found, str):
            left_out[name] = found
        else:
            arms[name] = found
    _take_turns(arms, updates, sizes, bench, left_out)
    return {
        "gemm_per_second": gemm,
        "updates": {"tokens": [count_tokens(u) for u in updates], "count": len(updates)},
        "arms": {name: _summarize(each, gemm) for name, each in arms.items()},
        "left_out": left_out,
    }


def attempt(work: Callable[[], Any]) -> Any:
    """What `work` gives, or why it gave nothing: one arm must not cost the others their turn."""
    try:
        return work()
    except torch.OutOfMemoryError as problem:
        reason = "memory: " + str(problem).split(". ")[0]
    except Exception as problem:  # noqa: BLE001 - every library beneath has its own
        where = traceback.extract_tb(problem.__traceback__)[-1]
        reason = f"{FAILED}{type(problem).__name__} in {where.name}: {str(problem)[:SHOWN]}"
    gc.collect()  # the frames that held on to memory are gone by now
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason


def _warm_up(
    arm: Contender,
    setting: Setting,
    updates: Sequence[Sequence[Example]],
    seconds: float,
    bench: Bench,
) -> _Arm:
    """Steps until it is warm; the last of them is weighed, and says what a step takes."""
    arm.enter(setting)
    bench.meter.clear()
    started, number, found = time.monotonic(), 0, _Arm(arm)
    while number < LEAST_WARM or (
        number < bench.effort.warm_up
        and time.monotonic() - started < WARM_SHARE * seconds
        and bench.left() > LEAST
    ):
        found.seconds = _step(arm, updates[number % len(updates)], bench.meter)
        number += 1
    memory = bench.meter.remember(
        lambda: _step(arm, max(updates, key=count_tokens), bench.meter),
        lambda: own_bytes(arm.model, arm.optimizer),
    )
    found.facts = {"about": arm.about, "warm_up_steps": number, "memory": _plainly(memory)}
    profiled = min(PROFILED_STEPS, int(bench.left() / 4 / found.seconds)) if arm.rated else 0
    if profiled:
        work = _work_of(arm, updates[0])
        found.facts["activity"] = bench.meter.profile(work, profiled)
    left = seconds - (time.monotonic() - started)
    found.rounds, found.steps = schedule(left, found.seconds, bench.effort)
    return found


def schedule(left: float, seconds: float, effort: Effort) -> tuple[int, int]:
    """Rounds and timed steps of each that fit, rounds first; (0, 0) where nothing does."""
    affordable = int(left / max(seconds, 1e-6))
    rounds = min(effort.rounds, affordable // 2)  # a block is a step to settle and one at least
    if rounds < min(LEAST_ROUNDS, effort.rounds):
        return 0, 0
    return rounds, min(effort.steps, affordable // rounds - 1)


def _take_turns(
    arms: Mapping[str, _Arm],
    updates: Sequence[Sequence[Example]],
    sizes: Sizes,
    bench: Bench,
    left_out: dict[str, str],
) -> None:
    rated = {name: each for name, each in arms.items() if each.arm.rated}
    for name, each in rated.items():
        if not each.rounds:
            left_out[f"{name}, speed"] = f"time: a step takes {each.seconds:.2f} s"
    for number in range(max((each.rounds for each in rated.values()), default=0)):
        first = number * (bench.effort.steps + 1)
        for name, each in rated.items():
            if number >= each.rounds or bench.left() < (each.steps + 1) * each.seconds:
                continue
            take = partial(_take_block, each, updates, first, sizes, bench.meter)
            taken = attempt(take)
            if isinstance(taken, str):
                left_out[f"{name}, round {number + 1}"], each.rounds = taken, 0
            else:
                each.taken.append(taken)


def _take_block(
    each: _Arm, updates: Sequence[Sequence[Example]], first: int, sizes: Sizes, meter: Meter
) -> list[tuple[float, int, float]]:
    meter.clear()
    _step(each.arm, updates[first % len(updates)], meter)  # its memory is found again
    taken = []
    for number in range(first + 1, first + 1 + each.steps):
        documents = updates[number % len(updates)]
        operations = count_operations(sizes, documents, each.arm.work)
        taken.append((_step(each.arm, documents, meter), count_tokens(documents), operations))
    return taken


def _step(arm: Contender, documents: Sequence[Example], meter: Meter) -> float:
    return meter.time(_work_of(arm, documents))


def _work_of(arm: Contender, documents: Sequence[Example]) -> Callable[[], float]:
    prepared = arm.prepare(documents)
    return lambda: arm.step(prepared)


def _summarize(each: _Arm, gemm: float) -> dict[str, Any]:
    steps = [step for block in each.taken for step in block]
    if not steps:
        return each.facts | {"tokens_per_second": None}
    paces = [tokens / seconds for seconds, tokens, _ in steps]
    rates = [operations / seconds for seconds, _, operations in steps]
    middle = statistics.median(seconds for seconds, _, _ in steps)
    facts = each.facts | {
        "tokens_per_second": spread(paces),
        "rounds": [statistics.median(t / s for s, t, _ in block) for block in each.taken],
        "seconds_per_step": middle,
        "timed_steps": len(steps),
        "share_of_gemm": statistics.median(rates) / gemm,
    }
    if "activity" in facts:
        busy = facts["activity"]["busy_seconds_per_step"]
        facts["busy_without_profiler"] = busy / middle
    return facts


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and what a fifth is below and above."""
    low, high = np.percentile(values, [20, 80])
    return {"median": statistics.median(values), "p20": float(low), "p80": float(high)}


def _plainly(memory: Memory | None) -> dict[str, int] | None:
    return None if memory is None else asdict(memory)
