"""What the GPU benchmark decides without a GPU: its plan, its time, its figures."""

import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=12)


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, whose short names are forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("training", "gpu"):
            patch.syspath_prepend(BENCHMARKS / folder)
        before = set(sys.modules)
        yield {name: import_module(name) for name in ("plan", "meter", "cells", "summary")}
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and BENCHMARKS in Path(file).parents:
                del sys.modules[name]


def test_the_plan_has_every_place_in_the_grid(modules: dict[str, ModuleType]) -> None:
    plan = modules["plan"]
    places = {
        (cell.shape, cell.tokens, cell.recompute, rows)
        for cell in plan.PLAN
        for rows in (plan.VARLEN, plan.PADDED)
        if rows in cell.arms and plan.OURS in cell.arms
    }
    tokens = (2048, 8192, 16384)
    wanted = product(("1B", "8B"), tokens, (False, True), (plan.VARLEN, plan.PADDED))
    assert places == set(wanted)
    assert len({cell.name for cell in plan.PLAN}) == len(plan.PLAN)


def test_what_was_asked_for_comes_first(modules: dict[str, ModuleType]) -> None:
    plan = modules["plan"]
    first, second = plan.PLAN[:2]
    assert (first.shape, first.tokens, first.recompute) == (*modules["summary"].ASKED_OF, False)
    assert {plan.OURS, plan.VARLEN} <= set(first.arms)
    assert plan.TRL in second.arms
    assert first.share + second.share < 0.5


@given(spans=SPANS)
def test_a_union_counts_each_moment_once(
    modules: dict[str, ModuleType], spans: list[tuple[int, int]]
) -> None:
    ends = [(first, first + length) for first, length in spans]
    moments = {moment for first, last in ends for moment in range(first, last)}
    assert modules["meter"].measure_union(ends) == len(moments)


def test_annotations_do_not_keep_a_gpu_busy(modules: dict[str, ModuleType]) -> None:
    events = [
        {"cat": "kernel", "name": "gemm", "ts": 0.0, "dur": 2e6},
        {"cat": "kernel", "name": "gemm", "ts": 1e6, "dur": 2e6},
        {"cat": "gpu_memcpy", "name": "copy", "ts": 8e6, "dur": 1e6},
        {"cat": "gpu_user_annotation", "name": "step", "ts": 0.0, "dur": 10e6},
        {"name": "no category"},
    ]
    meter = modules["meter"]
    found = meter.describe_events(events, 10.0, 2, meter.ON_DEVICE)
    assert found["busy"] == pytest.approx(0.4)
    assert found["busy_seconds_per_step"] == pytest.approx(2.0)
    assert found["launches_per_step"] == 1
    assert found["longest"][0] == {"name": "gemm", "seconds_per_step": 2.0, "per_step": 1}


@given(left=st.floats(-5, 500), seconds=st.floats(0.01, 20))
def test_a_schedule_keeps_to_its_time(
    modules: dict[str, ModuleType], left: float, seconds: float
) -> None:
    effort = modules["cells"].Effort()
    rounds, steps = modules["cells"].schedule(left, seconds, effort)
    assert rounds * (steps + 1) * seconds <= max(left, 0)
    assert rounds <= effort.rounds
    assert steps <= effort.steps
    assert bool(rounds) == (left >= 4 * seconds) == bool(steps)


def test_an_update_fits_into_a_packed_micro_batch(modules: dict[str, ModuleType]) -> None:
    updates = modules["cells"].draw_updates(2048, 100)
    assert len(updates) == modules["cells"].UPDATES
    for update in updates:
        assert 1024 < sum(document.length for document in update) <= 2048


def test_another_arm_gets_its_turn(modules: dict[str, ModuleType]) -> None:
    attempt = modules["cells"].attempt
    assert attempt(lambda: 3) == 3
    assert attempt([].pop).startswith("failed: IndexError")


@pytest.mark.parametrize("equal", [True, False])
def test_an_arm_that_computes_something_else_has_no_figure(
    modules: dict[str, ModuleType],
    *,
    equal: bool,
) -> None:
    text = "\n".join(modules["summary"].render(result(modules["plan"], equal=equal)))
    assert ("share of the GEMM rate: 55%" in text) is equal
    assert ("within documents: 1.25 (1.20–1.30)" in text) is equal
    assert ("| peftkit | void | void |" in text) is not equal
    assert "default, imitated: 0.25 with recomputing, 0.75 without" in text
    assert "Left out: plain with a mask (memory: too little)." in text


def result(plan: ModuleType, *, equal: bool) -> dict[str, Any]:
    """What a run would write, with made-up figures."""
    activity = {"busy": 0.9, "launches_per_step": 100.0}
    pace = {"median": 10.0, "p20": 9.0, "p80": 11.0}
    known = {"tokens_per_second": pace, "share_of_gemm": 0.55, "activity": activity}

    def arm(gib: int, rounds: list[float]) -> dict[str, Any]:
        memory = {"allocated": gib * 2**30, "reserved": gib * 2**30}
        return known | {"memory": memory, "rounds": rounds, "timed_steps": 2}

    place = {"shape": "8B", "tokens": 8192}
    off = {plan.OURS: arm(30, [12.0, 13.0]), plan.VARLEN: arm(50, [10.0, 10.0])}
    on = {plan.OURS: arm(10, [8.0]), plan.TRL: arm(40, []) | {"tokens_per_second": None}}
    left_out = {plan.MASK: "memory: too little"}
    return {
        "probes": {"gemm_per_second": 7e14, "copy_per_second": 4e12},
        "gpu_tests": {"exit_code": 0},
        "gates": {"8B": {plan.OURS: {"equal": equal}, plan.VARLEN: {"equal": True}}},
        "left_out": {},
        "cells": {
            "off: a": place | {"recompute": False, "arms": off, "left_out": left_out},
            "on: b": place | {"recompute": True, "arms": on, "left_out": {}},
        },
    }
