"""Where results go: a folder named on the machine, or this question's own; and without git too."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from record import write_result

from peftkit.base.machine import describe_machine, describe_versions

if TYPE_CHECKING:
    from pathlib import Path


def save(question: Path, measured: dict[str, Any], commit: str | None) -> Path:
    """As `record.write_result`; where there is no repository, `commit` stands in for its answer."""
    question.mkdir(parents=True, exist_ok=True)
    try:
        return write_result(question, measured)
    except (OSError, subprocess.CalledProcessError):
        return _write_without_git(question, measured, commit)


def _write_without_git(question: Path, measured: dict[str, Any], commit: str | None) -> Path:
    machine = describe_machine()
    shape = "gpu" if machine["gpu"] else f"cpu{machine['cores']}"
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    facts = {
        "date": today,
        "commit": commit,
        "clean_tree": None,
        "machine": machine,
        "versions": describe_versions(),
    }
    path = question / "results" / f"{today}-{commit or 'unknown'}-{shape}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts | {"measured": measured}, indent=2) + "\n", encoding="utf-8")
    return path
