"""Does the quickstart work, how sure is that, and how long does it take? Three seeds.

python benchmarks/quickstart/run.py            # results/, the README's output, the recipe's Expect
"""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

SEEDS = (0, 1, 2)
RECIPE = ROOT / "recipes" / "quickstart.yaml"


README = ROOT / "README.md"
OUTPUT = re.compile(r"(<!-- quickstart output.*?-->\n```console\n).*?(```)", re.DOTALL)
EXPECT = re.compile(r"(?m)^# Expect:.*$")


def measure(seed: int, folder: Path) -> tuple[dict[str, Any], str]:
    """Figures of one run in a process of its own, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "peftkit", "finetune", str(RECIPE), "--set", f"seed={seed}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    metrics = json.loads((folder / "runs/quickstart/metrics.json").read_text(encoding="utf-8"))
    figures = {
        "seed": seed,
        "base_exact_match": metrics["baselines"]["base"]["test"]["exact_match"],
        "adapted_exact_match": metrics["test"]["exact_match"],
        "difference": metrics["difference"]["test"],
        "verdict": metrics["verdict"]["sentence"],
        "wall_seconds": wall,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "tokens_per_second": metrics["speed"]["tokens_per_second"],
        "peak_memory_bytes": metrics["speed"]["peak_memory_bytes"],
    }
    return figures, done.stdout


def summarize(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median and range of each figure over the seeds."""
    names = ("base_exact_match", "adapted_exact_match", "wall_seconds", "cpu_seconds")
    return {
        name: {
            "median": statistics.median(run[name] for run in runs),
            "low": min(run[name] for run in runs),
            "high": max(run[name] for run in runs),
        }
        for name in names
    }


def expect_line(summary: dict[str, dict[str, float]]) -> str:
    """What the recipe's header promises."""
    base, adapted = summary["base_exact_match"], summary["adapted_exact_match"]
    return (
        f"# Expect: exact match on 200 test rows from {100 * base['median']:.1f} % to "
        f"{100 * adapted['median']:.1f} % [{100 * adapted['low']:.1f} … {100 * adapted['high']:.1f}"
        " over 3 seeds], benchmarks/quickstart"
    )


def main() -> None:
    """Measure every seed, write the result, and put it where people read it."""
    runs, printed = [], ""
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            figures, output = measure(seed, Path(folder))
        runs.append(figures)
        printed = printed or output.replace(f"{ROOT}/", "")
    summary = summarize(runs)
    print(write_result(Path(__file__).parent, {"summary": summary, "runs": runs}))
    block = f"$ peftkit finetune recipes/quickstart.yaml\n{printed}"
    readme = README.read_text(encoding="utf-8")
    README.write_text(OUTPUT.sub(lambda m: m[1] + block + m[2], readme), encoding="utf-8")
    recipe = RECIPE.read_text(encoding="utf-8")
    RECIPE.write_text(EXPECT.sub(expect_line(summary), recipe), encoding="utf-8")


if __name__ == "__main__":
    main()
