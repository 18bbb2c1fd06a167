"""What does stopping early save, and what does it cost? Three seeds, with and without it.

python benchmarks/stopping/run.py            # results/, and the recipe's Expect
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import peftkit

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

SEEDS = (0, 1, 2)
RECIPE = ROOT / "recipes" / "forgetting" / "early-stopping.yaml"
EXPECT = re.compile(r"(?m)^# Expect:.*$")
ARMS: dict[str, dict[str, Any]] = {
    "stopping": {},
    "to the end": {"train.early_stopping": "none"},
}


def measure(arm: str, seed: int) -> dict[str, Any]:
    """Figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        run = peftkit.finetune(RECIPE, out=Path(folder) / "run", set={"seed": seed} | ARMS[arm])
    metrics = run.metrics
    (remember,) = metrics["remember"]
    return {
        "arm": arm,
        "seed": seed,
        "exact_match": metrics["test"]["exact_match"],
        "validation_loss": metrics["validation"]["loss"],
        "general_rise": remember["after"]["loss"] - remember["before"]["loss"],
        "steps": metrics["steps"],
        "findings": [f["id"] for f in run.findings if f["severity"] != "ok"],
    }


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of each figure over the seeds, by arm."""
    found: dict[str, Any] = {}
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        values = {name: [run[name] for run in own] for name in ("exact_match", "general_rise")}
        values["steps"] = [run["steps"]["taken"] for run in own]
        found[arm] = {
            name: {"median": statistics.median(each), "low": min(each), "high": max(each)}
            for name, each in values.items()
        }
    return found


def expect_line(summary: dict[str, Any]) -> str:
    """What the recipe's header promises."""
    ours = summary["stopping"]
    answers, general, steps = (ours[name] for name in ("exact_match", "general_rise", "steps"))
    return (
        f"# Expect: exact match on 200 test rows {100 * answers['median']:.1f} % "
        f"[{100 * answers['low']:.1f} … {100 * answers['high']:.1f} over 3 seeds] after "
        f"{steps['median']} steps, stories {general['median']:+.3f} nats, benchmarks/stopping"
    )


def main() -> None:
    """Measure every seed with every arm in turn, and put the result where people read it."""
    runs = [measure(arm, seed) for seed in SEEDS for arm in ARMS]
    summary = summarize(runs)
    print(write_result(Path(__file__).parent, {"summary": summary, "runs": runs}))
    recipe = RECIPE.read_text(encoding="utf-8")
    RECIPE.write_text(EXPECT.sub(expect_line(summary), recipe), encoding="utf-8")


if __name__ == "__main__":
    main()
