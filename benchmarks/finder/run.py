"""Is what `learning_rate: find` suggests near the best of a grid?

python benchmarks/finder/run.py [--arms shakespeare-lora …] [--seeds 0]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

import peftkit
from peftkit.train.loop import DivergedError

HERE = Path(__file__).parent
MATERIAL = ROOT.parent / "shared" / "material"
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STORIES = str(MATERIAL / "stories260k-hf")
HOME = ROOT / "recipes" / "data" / "home"
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 8},
    "full": {"method": "full"},
}
SETS = ("shakespeare", "python", "home")
ARMS = [f"{name}-{method}" for name in SETS for method in METHODS]
CHARACTERS = 120_000


def write_text(name: str, folder: Path) -> Path:
    """What a base of stories is to learn: plays, or programs."""
    if name == "shakespeare":
        text = (MATERIAL / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    else:
        lines = (MATERIAL / "code-python" / "thealgorithms_python.jsonl").read_text("utf-8")
        rows = [json.loads(line) for line in lines.splitlines()]
        text = "\n\n".join(next(v for v in row.values() if len(str(v)) > 200) for row in rows[:150])
    path = folder / "text.txt"
    path.write_text(text[:CHARACTERS], encoding="utf-8")
    return path


def write_recipe(arm: str, rate: float | str, seed: int, folder: Path) -> Path:
    """The recipe of one run."""
    name, _, method = arm.partition("-")
    train: dict[str, Any] = {"learning_rate": rate, "threads": 1}
    if name == "home":
        base = "builtin:tiny"
        data: dict[str, Any] = {
            "train": str(HOME / "train.jsonl"),
            "validation": str(HOME / "validation.jsonl"),
            "max_length": 128,
        }
        train |= {"steps": 100, "batch": {"rows": 16}}
    else:
        base = STORIES
        text = {"source": str(write_text(name, folder)), "format": "text"}
        data = {"train": text, "max_length": 64, "leakage": "off"}
        train |= {"steps": 100, "batch": {"rows": 8}}
    recipe = {
        "name": "run",
        "seed": seed,
        "base": {"model": base},
        "adapter": METHODS[method],
        "data": data,
        "train": train,
        "evaluate": {"every": 10_000, "rows": 48, "samples": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def measure(arm: str, rate: float | str, seed: int) -> dict[str, Any]:
    """Validation loss of one run; where the rate is to be found, also the range test."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = write_recipe(arm, rate, seed, folder)
        try:
            run = peftkit.finetune(recipe, out=folder / "run")
        except DivergedError as problem:
            print(f"{arm} at {rate}: {problem}", file=sys.stderr)
            return {"loss": math.inf}
        found: dict[str, Any] = {"loss": run.metrics["validation"]["loss"]}
        if rate == "find":
            found |= json.loads((folder / "run/finder.json").read_text(encoding="utf-8"))
        return found


def valley(trials: list[dict[str, float]]) -> float:
    """The middle of the longest way down, as a rule to compare with.

    Of fastai's smoothing, without the first tenth and the last five.
    """
    total, smoothed = 0.0, []
    for number, trial in enumerate(trials, 1):
        total = 0.98 * total + 0.02 * trial["loss"]
        smoothed.append(total / (1 - 0.98**number))
    rates = [trial["learning_rate"] for trial in trials][len(trials) // 10 : -5]
    losses = smoothed[len(trials) // 10 : -5]
    longest = [1] * len(losses)
    for later, loss in enumerate(losses):
        before = [longest[at] for at in range(later) if losses[at] > loss]
        longest[later] = 1 + max(before, default=0)
    end = max(range(len(losses)), key=lambda at: (longest[at], -at))
    start = end - longest[end]
    third = (end - start) / 3
    return rates[max(start, 0) + int(third) + int(third / 2)]


def shown(loss: float) -> float | str:
    """A loss, or that the run went astray."""
    return loss if math.isfinite(loss) else "diverged"


def compare(arm: str, seed: int) -> dict[str, Any]:
    """The grid, the suggestion, and how far apart they are."""
    grid = {rate: measure(arm, rate, seed)["loss"] for rate in GRID}
    found = measure(arm, "find", seed)
    best = min(grid, key=lambda rate: grid[rate])
    result = {
        "arm": arm,
        "seed": seed,
        "grid": [{"learning_rate": rate, "loss": shown(loss)} for rate, loss in grid.items()],
        "best": best,
        "suggestion": found["suggestion"],
        "ratio": found["suggestion"] / best,
        "loss": found["loss"],
        "valley": valley(found["trials"]),
        "trials": found["trials"],
    }
    print(
        f"{seed} {arm}: best {best:g} ({grid[best]:.3f}), found {result['suggestion']:.2g} "
        f"({found['loss']:.3f}, {result['ratio']:.2f} times), valley {result['valley']:.2g}",
        flush=True,
    )
    return result


def main() -> None:
    """Measure all arms and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    found, path = [], None
    for arm in options.arms:
        for seed in options.seeds:
            found.append(compare(arm, seed))
            path = write_result(HERE, {"within": 3.0, "arms": found})  # so far
    print(path)


if __name__ == "__main__":
    main()
