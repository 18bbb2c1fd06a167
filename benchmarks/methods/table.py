"""Put the results into the README: accuracy, share, speed and memory of each method.

python benchmarks/methods/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "concepts" / "methods.md"
MARK = "<!-- results: written by table.py -->"
END = "<!-- end of results -->"


def read_results() -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the results, and their runs: of one measured twice, that of the later name."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    paths = sorted((HERE / "results").glob("*.json"))
    for path in paths:
        for run in json.loads(path.read_text(encoding="utf-8"))["measured"]["runs"]:
            found[run["set"], run["method"], run["seed"]] = run
    return [path.name for path in paths], list(found.values())


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    low, high = min(values), max(values)
    if len(values) == 1:
        return f"{low:.{digits}f}"
    return f"{median(values):.{digits}f} ({low:.{digits}f}\N{EN DASH}{high:.{digits}f})"


def rows_of(runs: list[dict[str, Any]]) -> list[list[str]]:
    """One row a method: figures over all its runs, ratios within a seed and data set."""
    sets = list(dict.fromkeys(run["set"] for run in runs))
    pace = {(r["method"], r["set"], r["seed"]): r["tokens"] / r["cpu_seconds"] for r in runs}
    full = {run["set"]: run["trainable"] for run in runs if run["method"] == "full"}
    found = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        shares = sorted({f"{100 * run['trainable'] / full[run['set']]:.2f}" for run in own})
        places = [(run["set"], run["seed"]) for run in own]
        speed = [pace[method, *place] / pace["full", *place] for place in places]
        scores = [[100 * run["accuracy"] for run in own if run["set"] == name] for name in sets]
        shown = [spread(each) if each else "\N{EN DASH}" for each in scores]
        peak = f"{median(run['peak_memory_bytes'] for run in own) / 2**20:.0f}"
        share = " to ".join(dict.fromkeys((shares[0], shares[-1])))
        found.append([f"`{method}`", f"{share} %", *shown, spread(speed, 2), peak])
    return found


def main() -> None:
    """Rewrite everything below the mark in the README, and between both marks on the page."""
    names, runs = read_results()
    head = ["method", "trainable", *dict.fromkeys(r["set"] for r in runs), "speed", "peak MiB"]
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows_of(runs)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    said = (
        f"From {' and '.join(f'`{name}`' for name in names)}: accuracy in percent on test rows, "
        "median and range of the seeds; trainable parameters and speed as a share of full "
        "fine-tuning's."
    )
    for page in (HERE / "README.md", PAGE):
        above, _, rest = page.read_text(encoding="utf-8").partition(MARK)
        below = rest.partition(END)[2]
        page.write_text(f"{above}{MARK}\n\n{said}\n\n{table}\n\n{END}{below}", encoding="utf-8")


if __name__ == "__main__":
    main()
