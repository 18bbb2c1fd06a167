"""How near does a LoRA on one GPU come to what the GPU can do, and to transformers with peft?

python benchmarks/gpu/run.py --budget 540
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "training"))
sys.path.append(str(Path(__file__).parents[2]))  # where the package is not installed
from cells import FAILED, LEAST, Bench, Effort, measure_cell
from contenders import Setting
from gpu_tests import run_gpu_tests
from meter import Meter
from nf4 import refuse_nf4
from outcome import save
from plan import NF4, PLAN, SMOKE_PLAN, TRL
from summary import render
from workshop import Workshop

if TYPE_CHECKING:
    from plan import Cell

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTS_SHARE = 0.15
"""Most of the budget that the tests may take."""
SMOKE_EFFORT = Effort(warm_up=1, rounds=2, steps=1, gemm=256)


@dataclass(frozen=True, slots=True)
class Run:
    """What all cells share."""

    bench: Bench
    budget: float
    workshops: dict[str, Workshop]
    measured: dict[str, Any]


def main() -> None:
    """Measure what fits, in order of importance, and write after each block."""
    started, given = time.monotonic(), read_arguments()
    device = torch.device("cpu" if given.smoke else "cuda")
    if not given.smoke and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; `--smoke` runs the script itself on a CPU.")
    effort = SMOKE_EFFORT if given.smoke else Effort()
    bench = Bench(Meter(device), effort, started + given.budget)
    measured = begin(bench, given)
    run = Run(bench, given.budget, {}, measured)
    path = save(given.into, measured, given.commit)
    for cell in SMOKE_PLAN if given.smoke else PLAN:
        take_cell(cell, run)
        measured["seconds"] = round(time.monotonic() - started, 1)
        before, path = path, save(given.into, measured, given.commit)
        if before != path:  # a commit or a midnight came between
            before.unlink()
        print(f"{measured['seconds']:.0f} s: {cell.name}", file=sys.stderr, flush=True)
    print("\n".join(render(measured)))
    print(path)
    if given.smoke and FAILED in path.read_text(encoding="utf-8"):
        sys.exit("An arm failed: its reason stands in the result.")


def begin(bench: Bench, given: argparse.Namespace) -> dict[str, Any]:
    """The tests' outcome, and what the device can do at best."""
    tests = {"left_out": "asked for by --no-tests"}
    if not given.no_tests:
        tests = run_gpu_tests(ROOT, TESTS_SHARE * given.budget)
    return {
        "smoke": given.smoke,
        "budget": given.budget,
        "effort": asdict(bench.effort),
        "gpu_tests": tests,
        "probes": {
            "gemm_per_second": bench.meter.measure_gemm(bench.effort.gemm),
            "copy_per_second": bench.meter.measure_copy(),
        },
        "left_out": {},
        "gates": {},
        "cells": {},
    }


def take_cell(cell: Cell, run: Run) -> None:
    """Measure one cell, or say why not."""
    left_out, bench = run.measured["left_out"], run.bench
    seconds = min(cell.share * run.budget, bench.left() - LEAST)
    if seconds < min(LEAST, cell.share * run.budget):
        left_out[cell.name] = f"time: {bench.left():.0f} of {run.budget:.0f} s were left"
        return
    arms = list(cell.arms)
    if NF4 in arms and (reason := refuse_nf4()):
        left_out[NF4] = reason
        return
    if cell.shape not in run.workshops:
        run.workshops[cell.shape] = Workshop(cell.shape, bench.meter.device)
    shop = run.workshops[cell.shape]
    run.measured["cells"][cell.name] = asdict(cell) | measure_cell(
        {name: shop.maker(name) for name in arms},
        Setting(cell.tokens, cell.recompute),
        shop.sizes,
        shop.vocabulary,
        seconds / len(arms),
        bench,
    )
    run.measured["gates"][cell.shape] = shop.gates
    for name in (TRL, NF4):  # they have weights of their own
        shop.forget(name)


def read_arguments() -> argparse.Namespace:
    """How long, and where to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape on a CPU, two steps")
    parser.add_argument("--no-tests", action="store_true", help="leave the GPU tests out")
    parser.add_argument("--commit", help="for the result, where there is no git")
    out = Path(os.environ.get("OUT") or HERE)
    parser.add_argument("--into", type=Path, default=out, help="where `results/` is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
