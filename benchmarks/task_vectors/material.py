"""Texts that the base knows and texts that it does not, as rows; no document is on two sides."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHARACTERS = 300
"""Of a row: about 100 tokens of the base."""
PARTS = {"judge": 64, "search": 32, "train": 1600}
"""Rows of each part at most, the parts in the order in which they take documents."""
SHARE = 8
"""One document of so many is judged by, and another one searched on."""


def read_domains(material: Path) -> dict[str, list[str]]:
    """Documents, by what they are."""
    code = (material / "code-python/thealgorithms_python.jsonl").read_text(encoding="utf-8")
    plays = (material / "tinyshakespeare/input.txt").read_text(encoding="utf-8")
    told = (material / "tinystories-sample/tinystories_sample.txt").read_text(encoding="utf-8")
    abstracts = json.loads((material / "pubmedqa/ori_pqal.json").read_text(encoding="utf-8"))
    rules = sorted((material / "legal-site-policy").glob("*__*.md"))
    stories = [story.strip() for story in told.split("<|endoftext|>")]
    scenes = [plays[at : at + 4000] for at in range(0, len(plays), 4000)]
    return {
        "stories": stories,
        "capital stories": [story.upper() for story in stories],
        "plays": scenes,
        "capital plays": [scene.upper() for scene in scenes],
        "code": [json.loads(line)["text"] for line in code.splitlines()],
        "rules": [path.read_text(encoding="utf-8") for path in rules],
        "abstracts": [" ".join(each["CONTEXTS"]) for each in abstracts.values()],
    }


def write_rows(domain: str, documents: list[str], folder: Path) -> None:
    """The rows of every part of a domain, each in a file."""
    shuffled = list(documents)
    random.Random(0).shuffle(shuffled)
    held = max(1, len(shuffled) // SHARE)
    sides = {
        "judge": shuffled[:held],
        "search": shuffled[held : 2 * held],
        "train": shuffled[2 * held :],
    }
    for part, most in PARTS.items():
        rows = [row for document in sides[part] for row in _rows(document)]
        random.Random(1).shuffle(rows)
        lines = (json.dumps({"text": row}) + "\n" for row in rows[:most])
        (folder / f"{domain}.{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def _rows(document: str) -> Iterator[str]:
    for start in range(0, max(len(document) - CHARACTERS // 2, 1), CHARACTERS):
        if row := document[start : start + CHARACTERS].strip():
            yield row
