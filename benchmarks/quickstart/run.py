"""Does the quickstart work, how sure is that, and how long does it take? Three seeds.

python benchmarks/quickstart/run.py
"""

from __future__ import annotations

import json
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


def measure(seed: int) -> dict[str, Any]:
    """Figures of one run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "peftkit", "finetune", str(RECIPE), "--json", "--quiet"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        done = subprocess.run(
            [*command, "--set", f"seed={seed}", "--out", f"{folder}/run"],
            capture_output=True,
            text=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    metrics = json.loads(done.stdout)
    return {
        "seed": seed,
        "base_exact_match": metrics["baselines"]["base"]["test"]["exact_match"],
        "adapted_exact_match": metrics["test"]["exact_match"],
        "difference": metrics["difference"]["test"],
        "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "tokens_per_second": metrics["speed"]["tokens_per_second"],
        "peak_memory_bytes": metrics["speed"]["peak_memory_bytes"],
    }


def main() -> None:
    """Measure every seed and write the result."""
    runs = [measure(seed) for seed in SEEDS]
    summary = {
        name: {
            "median": statistics.median(run[name] for run in runs),
            "low": min(run[name] for run in runs),
            "high": max(run[name] for run in runs),
        }
        for name in ("base_exact_match", "adapted_exact_match", "wall_seconds", "cpu_seconds")
    }
    print(write_result(Path(__file__).parent, {"summary": summary, "runs": runs}))


if __name__ == "__main__":
    main()
