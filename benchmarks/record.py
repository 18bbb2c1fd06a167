"""Write a benchmark's result: what was measured, with versions, commit and the machine's shape."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftkit.base.machine import describe_machine, describe_versions

ROOT = Path(__file__).parents[1]


def write_result(question: Path, measured: dict[str, Any], folder: str = "results") -> Path:
    """Put `measured` into `question/results/<date>-<commit>-<machine>.json`, or another folder."""
    machine = describe_machine()
    shape = "gpu" if machine["gpu"] else f"cpu{machine['cores']}"
    commit = _git("rev-parse", "--short=10", "HEAD")
    name = f"{datetime.now(UTC):%Y-%m-%d}-{commit}-{shape}.json"
    path = question / folder / name
    path.parent.mkdir(exist_ok=True)
    facts = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit,
        "clean_tree": not _git("status", "--porcelain", "--untracked-files=no"),
        "machine": machine,
        "versions": describe_versions(),
    }
    path.write_text(json.dumps(facts | {"measured": measured}, indent=2) + "\n", encoding="utf-8")
    return path


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
