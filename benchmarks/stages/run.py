"""Does a classifier gain by starting from what earlier stages learned? Each recipe, three seeds.

python benchmarks/stages/run.py [--seeds 3] [--only masked] [--encoder FOLDER]    # results/
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import peftkit

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

RECIPES = sorted((ROOT / "recipes" / "stages").glob("*.yaml"))


def measure(recipe: Path, seed: int, encoder: str | None) -> dict[str, Any]:
    """Accuracy of a recipe's last stage, and of the same stage from the base."""
    over: dict[str, Any] = {"seed": seed}
    if recipe.stem.startswith("masked") and encoder:
        over["base.model"] = encoder
    with tempfile.TemporaryDirectory() as folder:
        staged = peftkit.finetune(recipe, out=Path(folder) / "staged", set=over).metrics
        last = staged["stages"][-1]["name"]
        alone = over | {f"stages.{last}.start_from": "base", f"stages.{last}.as": "auto"}
        plain = peftkit.finetune(recipe, out=Path(folder) / "alone", set=alone).metrics
    return {
        "seed": seed,
        "accuracy": staged["test"]["accuracy"],
        "alone": plain["test"]["accuracy"],
        "loss": staged["test"]["loss"],
        "alone_loss": plain["test"]["loss"],
        "losses": staged["losses"],
        "seconds": sum(stage["speed"]["seconds"] for stage in staged["stages"]),
    }


def main() -> None:
    """Measure the recipes that were asked for, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--encoder")
    asked = parser.parse_args()
    measured = {}
    for recipe in (path for path in RECIPES if path.stem.startswith(asked.only)):
        if recipe.stem.startswith("masked") and not asked.encoder:
            continue
        runs = [measure(recipe, seed, asked.encoder) for seed in range(asked.seeds)]
        medians = {
            key: statistics.median(run[key] for run in runs) for key in ("accuracy", "alone")
        }
        measured[recipe.stem] = {"runs": runs, "median": medians}
        print(recipe.stem, medians, flush=True)
    print(write_result(Path(__file__).parent, measured))


if __name__ == "__main__":
    main()
