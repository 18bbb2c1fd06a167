"""Do the shipped merges do what they are for? Every one, as its header says, on another base.

python benchmarks/task_vectors/recipes.py        # results-of-recipes/
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peftkit.recipe import catalog

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

BASE = ROOT.parent / "shared" / "material" / "stories260k-hf"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
KEYS = {"finetune": "base.model", "merge": "base"}
"""What names the base in each kind of recipe."""


def run(command: str, place: Path) -> None:
    """Run a command of a header in a folder, on this benchmark's base."""
    words = command.split()[1:]
    base = f"{KEYS[words[0]]}={BASE}"
    subprocess.run(
        [sys.executable, "-m", "peftkit", *words, "--set", base],
        cwd=place,
        env=os.environ | ONE_THREAD | {"PEFTKIT_CACHE": str(place / "cache")},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def read(result: Path) -> dict[str, Any]:
    """What a merge says of itself."""
    metrics = json.loads((result / "metrics.json").read_text(encoding="utf-8"))
    sets = {}
    for each in metrics["sets"]:
        figures = {name: model["loss"] for name, model in each["models"].items()}
        answers = {n: m["exact_match"] for n, m in each["models"].items() if "exact_match" in m}
        sets[each["name"]] = {
            "loss": figures,
            "exact_match": answers,
            "retained": (each.get("retained") or {}).get("share"),
            "kept": each["performance"]["merged"]["share"],
        }
    return {"sets": sets, "sentence": metrics["verdict"]["sentence"]}


def main() -> None:
    """Run every shipped merge and write the result."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        place, done = Path(name), set()
        for one in catalog.shipped():
            if not one.needed:
                continue
            copied = catalog.copy(one.name, place)
            for command in one.commands_for(copied):
                if command not in done:
                    run(command, place)
                    done.add(command)
            found[one.name] = read(place / "merged" / copied.stem)
            print(json.dumps({one.name: found[one.name]}), flush=True)
    print(write_result(Path(__file__).parent, {"recipes": found}, folder="results-of-recipes"))


if __name__ == "__main__":
    main()
