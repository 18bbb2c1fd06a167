"""What do interrupted, damaged and starved runs end with? Runs the full set of fault tests.

python benchmarks/faults/run.py                # writes results/
"""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import ROOT, write_result

HERE = Path(__file__).parent


def main() -> int:
    """Run the tests, keep what they counted, and say how they went."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        code = run_tests(report)
        suite = next(ET.parse(report).getroot().iter("testsuite"))
    tests = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = {
        **tests,
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
        "counted": count(suite),
        "skipped_because": sorted({found.get("message", "") for found in suite.iter("skipped")}),
    }
    print(write_result(HERE, measured).relative_to(ROOT))
    return code


def run_tests(report: Path) -> int:
    """The exit code of the full set, one test after the other; what they count is in `report`."""
    # xunit1 keeps the properties of each test
    options = ["-m", "faults or not faults", f"--junitxml={report}", "-o", "junit_family=xunit1"]
    command = [sys.executable, "-m", "pytest", "tests/faults", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def count(suite: ET.Element) -> dict[str, dict[str, int]]:
    """What the tests counted, by name; what several tests counted under one name is added up."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for case in suite.iter("testcase"):
        for kept in case.iter("property"):
            value: Any = ast.literal_eval(str(kept.get("value")))
            found[str(kept.get("name"))].update({"tests": 1, **value})
    return {name: dict(counts) for name, counts in sorted(found.items())}


if __name__ == "__main__":
    sys.exit(main())
