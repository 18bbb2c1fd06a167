"""Write the rows of the shipped recipes on merging: calm sentences, and the same ones shouted.

python benchmarks/task_vectors/make_habit.py     # recipes/data/habit
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
WHO = ("the dog", "a cat", "the old man", "my sister", "the girl", "a small bird", "our teacher")
DID = ("ran to", "looked at", "walked around", "sang about", "went back to", "found")
WHAT = ("the big tree", "a red ball", "the river", "her little house", "the garden", "an old boat")
WHEN = ("in the morning", "before lunch", "when it rained", "after school", "at night")
TRAIN, TEST = 320, 80


def main() -> None:
    """Write the files; the same ones every time."""
    sentences = [f"{' '.join(words)}.".capitalize() for words in product(WHO, DID, WHAT, WHEN)]
    random.Random(0).shuffle(sentences)
    parts = {"train": sentences[:TRAIN], "test": sentences[TRAIN : TRAIN + TEST]}
    for part, rows in parts.items():
        _write(f"calm.{part}", [{"text": row} for row in rows])
        _write(f"shouts.{part}", [{"text": row.upper()} for row in rows])
    home = (RECIPES / "data/home/test.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    shouted = [{name: text.upper() for name, text in json.loads(row).items()} for row in home]
    _write("commands.test", shouted)


def _write(name: str, rows: list[dict[str, str]]) -> None:
    path = RECIPES / "data" / "habit" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
