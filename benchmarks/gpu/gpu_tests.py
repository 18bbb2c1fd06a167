"""The repository's tests that need a GPU, run before anything is measured."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MARK = "mark.gpu"
SHOWN = 3000
"""Last characters of what pytest said."""
ELSEWHERE = ("-o", "minversion=8.0", "-o", "filterwarnings=default")
"""The pins of this repository do not hold on a machine that is lent."""


def run_gpu_tests(root: Path, seconds: float) -> dict[str, Any]:
    """Exit code and last lines of `pytest -m gpu`, over the files that have such tests."""
    if importlib.util.find_spec("pytest") is None:
        return {"left_out": "pytest is not installed here"}
    files = [
        str(path.relative_to(root))
        for path in sorted((root / "tests").rglob("test_*.py"))
        if MARK in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *ELSEWHERE, *files]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"files": files, "left_out": f"not over after {seconds:.0f} s"}
    said = (done.stdout + done.stderr)[-SHOWN:]
    return {"files": files, "exit_code": done.returncode, "said": said}
