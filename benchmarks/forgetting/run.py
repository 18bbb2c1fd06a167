"""What keeps a base from forgetting, and what does it cost? Full and LoRA runs on a tiny base.

python benchmarks/forgetting/run.py --keep runs.jsonl            # results/
python benchmarks/forgetting/run.py --keep runs.jsonl --only regularizers
python benchmarks/forgetting/run.py --smoke                      # two steps of one seed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from arms import ARMS, RECIPES, SEEDS, STAGES, Arm
from judge import summarize
from material import write_material
from record import write_result

import peftkit

QUIET = {"data.leakage": "off", "data.duplicates": "off", "evaluate.samples": 1}


def measure(arm: Arm, seed: int, folder: Path, steps: int | None) -> dict[str, Any]:
    """Figures of one run, of all its stages where it has several."""
    started = time.process_time()
    under: Path | None = None
    for number, stage in enumerate(arm.stages):
        name = f"{arm.name}-{seed}-{number}"
        recipe = RECIPES / f"{stage}.yaml"
        if stage in STAGES:
            recipe = folder / f"{name}.yaml"
            recipe.write_text(STAGES[stage], encoding="utf-8")
        settings = QUIET | arm.settings[number] | {"seed": seed}
        if steps:
            settings |= {"train.steps": steps, "evaluate.rows": 8}
        if under is not None:
            settings["adapter.under"] = str(under)
        run = peftkit.finetune(recipe, out=folder / "runs" / name, set=settings)
        under = run.path
    metrics = run.metrics
    found = metrics["validation"]
    remember = next(iter(metrics["remember"]), None)
    plan = json.loads((run.path / "plan.json").read_text(encoding="utf-8"))
    return {
        "arm": arm.name,
        "group": arm.group,
        "settings": arm.settings,
        "seed": seed,
        "trainable": plan["trainable"],
        "target": found["loss"],
        "accuracy": found.get("accuracy", found.get("exact_match")),
        "base_target": metrics["baselines"]["base"]["loss"],
        "general": remember and remember["after"]["loss"],
        "base_general": remember and remember["before"]["loss"],
        "cpu_seconds": time.process_time() - started,
    }


def read_kept(keep: Path | None) -> list[dict[str, Any]]:
    """Runs that an earlier call took and kept."""
    if keep is None or not keep.exists():
        return []
    return [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()]


def _seeds(asked: argparse.Namespace) -> tuple[int, ...]:
    if asked.seed is not None:
        return (asked.seed,)
    return SEEDS[:1] if asked.smoke else SEEDS


def main() -> None:
    """Take every run that is not kept yet, arms in turn for each seed, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="file of runs to go on from")
    parser.add_argument("--only", help="one group of arms; nothing is written")
    parser.add_argument("--seed", type=int, help="one seed; nothing is written")
    parser.add_argument("--partial", action="store_true", help="write what is kept, and take none")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    runs = read_kept(asked.keep)
    done = {(run["arm"], run["seed"]) for run in runs}
    keep = asked.keep and asked.keep.absolute()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        os.environ["PEFTKIT_CACHE"] = f"{name}/cache"
        write_material(Path(name))
        for seed in () if asked.partial else _seeds(asked):
            for arm in ARMS:
                left_out = seed not in arm.seeds or asked.only not in (None, arm.group)
                if left_out or (arm.name, seed) in done:
                    continue
                runs.append(measure(arm, seed, Path(name), 2 if asked.smoke else None))
                print(json.dumps(runs[-1]), flush=True)
                if keep:
                    with keep.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(runs[-1]) + "\n")
    if not asked.smoke and asked.only is None and asked.seed is None:
        print(write_result(Path(__file__).parent, {"summary": summarize(runs), "runs": runs}))


if __name__ == "__main__":
    main()
