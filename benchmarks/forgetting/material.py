"""The texts of the benchmark: Python to learn, stories to remember, and files to tell apart."""

from __future__ import annotations

import json
from pathlib import Path

MATERIAL = Path(__file__).parents[3] / "shared" / "material"
TOPICS = ("data_structures", "graphs", "strings", "sorts")
LABELED = {"train": 24, "valid": 30}
"""Files of each topic that the classifier learns from, and is judged by."""


def write_material(folder: Path) -> None:
    """Write every file that the recipes name into a folder."""
    files = _read_python()
    rest = [file for file in files if file["topic"] not in TOPICS]
    _write(folder / "python.txt", [file["text"] for file in rest[:260]], 420_000)
    _write(folder / "python-valid.txt", [file["text"] for file in rest[260:320]], 24_000)
    stories = (MATERIAL / "tinystories-sample" / "tinystories_sample.txt").read_text(
        encoding="utf-8"
    )
    (folder / "general.txt").write_text(stories[:200_000], encoding="utf-8")
    (folder / "remember.txt").write_text(stories[300_000:330_000], encoding="utf-8")
    plays = (MATERIAL / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    (folder / "shakespeare.txt").write_text(plays[:420_000], encoding="utf-8")
    _write_labeled(folder, files)


def _read_python() -> list[dict[str, str]]:
    path = MATERIAL / "code-python" / "thealgorithms_python.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, texts: list[str], size: int) -> None:
    path.write_text("\n\n".join(texts)[:size], encoding="utf-8")


def _write_labeled(folder: Path, files: list[dict[str, str]]) -> None:
    """Rows of a topic in turn; no file of them is among the texts."""
    at = 0
    for name, count in LABELED.items():
        rows = []
        for topic in TOPICS:
            own = [file for file in files if file["topic"] == topic][at : at + count]
            rows += [{"text": file["text"][:500], "label": topic} for file in own]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"topics-{name}.jsonl").write_text(lines, encoding="utf-8")
        at += count
