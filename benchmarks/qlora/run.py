"""What does a base in 4 bits cost? The same LoRA on 32 bits and on 4, three seeds each.

python benchmarks/qlora/run.py            # results/
python benchmarks/qlora/run.py --smoke    # two steps of one seed, nothing written
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

MATERIAL = ROOT.parent / "shared" / "material"
SEEDS = (0, 1, 2)
ARMS = ("none", "nf4")
STEPS, ROWS = 150, 256
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def recipe_text(steps: int, rows: int) -> str:
    """The recipe that every arm runs; what differs comes as `--set`."""
    return f"""\
name: qlora
base: {{model: {MATERIAL}/stories260k-hf}}
adapter: {{method: lora, rank: 8, alpha: 16}}
data:
  train: {{source: {MATERIAL}/tinyshakespeare/input.txt, format: text}}
  max_length: 128
train: {{steps: {steps}, batch: {{rows: 16}}, learning_rate: 1e-2, threads: 1}}
evaluate: {{every: 1000, rows: {rows}}}
"""


def measure(arm: str, seed: int, folder: Path, *, steps: int, rows: int) -> dict[str, Any]:
    """Figures of one run in a process of its own."""
    recipe = folder / "qlora.yaml"
    recipe.write_text(recipe_text(steps, rows), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    settings = [f"base.quantize={arm}", f"seed={seed}"]
    options = [word for setting in settings for word in ("--set", setting)]
    subprocess.run(
        [sys.executable, "-m", "peftkit", "finetune", str(recipe), *options],
        cwd=folder,
        env=os.environ | ONE_THREAD | {"PEFTKIT_CACHE": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = folder / "runs" / "qlora"
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    return {
        "quantize": arm,
        "seed": seed,
        "base_loss": metrics["baselines"]["base"]["loss"],
        "loss": metrics["validation"]["loss"],
        "base_bytes": plan["base_bytes"],
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "tokens_per_second": metrics["speed"]["tokens_per_second"],
    }


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each arm its mean losses and its gap to the plain base, paired by seed."""
    losses = {(run["quantize"], run["seed"]): run["loss"] for run in runs}
    seeds = sorted({seed for _, seed in losses})
    plain = [losses["none", seed] for seed in seeds]
    arms = {}
    for arm in dict.fromkeys(run["quantize"] for run in runs):
        of_arm = [run for run in runs if run["quantize"] == arm]
        gaps = [losses[arm, seed] - losses["none", seed] for seed in seeds]
        arms[arm] = {
            "loss": statistics.mean(run["loss"] for run in of_arm),
            "base_loss": statistics.mean(run["base_loss"] for run in of_arm),
            "gap": statistics.mean(gaps),
            "gaps": gaps,
            "base_bytes": of_arm[0]["base_bytes"],
            "cpu_seconds": statistics.median(run["cpu_seconds"] for run in of_arm),
        }
    return {"arms": arms, "spread": max(plain) - min(plain)}


def main() -> None:
    """Measure every arm with every seed, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    runs = []
    for seed in SEEDS[:1] if smoke else SEEDS:
        for arm in ARMS:  # arms in turn, so that a busy hour of the machine meets all of them
            with tempfile.TemporaryDirectory() as folder:
                steps, rows = (2, 16) if smoke else (STEPS, ROWS)
                runs.append(measure(arm, seed, Path(folder), steps=steps, rows=rows))
            print(json.dumps(runs[-1]), flush=True)
    measured = {"summary": summarize(runs), "runs": runs}
    if smoke:
        print(json.dumps(measured["summary"], indent=2))
    else:
        print(write_result(Path(__file__).parent, measured))


if __name__ == "__main__":
    main()
