"""Put the newest result into the README: accuracy, share, speed and memory of each method.

python benchmarks/methods/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
MARK = "<!-- results: written by table.py -->"


def newest() -> Path:
    """The result that is shown."""
    return max((HERE / "results").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f}\N{EN DASH}{high:.{digits}f})"


def rows_of(runs: list[dict[str, Any]]) -> list[list[str]]:
    """One row a method: figures over all its runs, ratios within a seed and data set."""
    sets = list(dict.fromkeys(run["set"] for run in runs))
    methods = list(dict.fromkeys(run["method"] for run in runs))
    pace = {(r["method"], r["set"], r["seed"]): r["tokens"] / r["cpu_seconds"] for r in runs}
    full = {run["set"]: run["trainable"] for run in runs if run["method"] == "full"}
    found = []
    for method in methods:
        own = [run for run in runs if run["method"] == method]
        shares = sorted({100 * run["trainable"] / full[run["set"]] for run in own})
        speed = [
            pace[method, run["set"], run["seed"]] / pace["full", run["set"], run["seed"]]
            for run in own
        ]
        memory = [run["peak_memory_bytes"] / 2**20 for run in own]
        scores = [spread([100 * r["accuracy"] for r in own if r["set"] == name]) for name in sets]
        share = " to ".join(f"{each:.2f}" for each in dict.fromkeys((shares[0], shares[-1])))
        found.append(
            [f"`{method}`", f"{share} %", *scores, spread(speed, 2), f"{median(memory):.0f}"]
        )
    return found


def main() -> None:
    """Rewrite everything below the mark."""
    path = newest()
    result = json.loads(path.read_text(encoding="utf-8"))
    sets = list(dict.fromkeys(run["set"] for run in result["runs"]))
    head = ["method", "trainable", *sets, "speed, × full", "peak MiB"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows_of(result["runs"])]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    readme = HERE / "README.md"
    above = readme.read_text(encoding="utf-8").partition(MARK)[0]
    said = f"From `{path.name}`: accuracy in percent on test rows, median and range of the seeds."
    readme.write_text(f"{above}{MARK}\n\n{said}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
