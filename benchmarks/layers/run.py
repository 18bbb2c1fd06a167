"""What do slower lower blocks, or blocks that begin in turns, change against training all alike?

python benchmarks/layers/run.py [--arms plain …] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

import peftkit

HERE = Path(__file__).parent
MATERIAL = ROOT.parent / "shared" / "material"
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer_decay 0.8": {"layer_decay": 0.8},
    "layer_decay 0.5": {"layer_decay": 0.5},
    "unfreeze by epoch": {"unfreeze": {"every": "epoch"}},
    "unfreeze on a plateau": {"unfreeze": {"every": "plateau"}},
}
"""What each arm adds to full fine-tuning of the same steps at a constant rate."""
CHARACTERS = 40_000


def measure(arm: str, seed: int) -> dict[str, Any]:
    """What one run learned of plays, what it forgot of stories, and how long its steps took."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, source in (
            ("text.txt", MATERIAL / "tinyshakespeare" / "input.txt"),
            ("general.txt", MATERIAL / "tinystories-sample" / "tinystories_sample.txt"),
        ):
            text = source.read_text(encoding="utf-8", errors="replace")
            (folder / name).write_text(text[:CHARACTERS], encoding="utf-8")
        recipe = {
            "name": "run",
            "seed": seed,
            "base": {"model": str(MATERIAL / "stories260k-hf")},
            "adapter": {"method": "full"},
            "data": {
                "train": {"source": "text.txt", "format": "text"},
                "max_length": 64,
                "leakage": "off",
            },
            "train": {
                "steps": 120,
                "batch": {"rows": 8},
                "learning_rate": 1e-3,
                "schedule": "constant",
                "threads": 1,
                **ARMS[arm],
            },
            "evaluate": {
                "every": 10,
                "rows": 32,
                "samples": 1,
                "remember": {"source": "general.txt", "format": "text"},
            },
        }
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        run = peftkit.finetune(path, out=folder / "run")
        depths = folder / "run" / "unfreezing.json"
        general = run.metrics["remember"][0]
        return {
            "arm": arm,
            "seed": seed,
            "target": run.metrics["validation"]["loss"],
            "general_before": general["before"]["loss"],
            "general_after": general["after"]["loss"],
            "seconds": run.metrics["speed"]["seconds"],
            "depths": json.loads(depths.read_text())["curve"] if depths.exists() else [],
        }


def main() -> None:
    """Measure all arms in turns and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    found, path = [], None
    for seed in options.seeds:
        for arm in options.arms:
            found.append(measure(arm, seed))
            one = found[-1]
            forgot = one["general_after"] - one["general_before"]
            print(
                f"{seed} {arm}: target {one['target']:.3f}, forgot {forgot:.3f}, "
                f"{one['seconds']:.0f} s",
                flush=True,
            )
            path = write_result(HERE, {"runs": found})  # so far
    print(path)


if __name__ == "__main__":
    main()
