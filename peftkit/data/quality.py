"""What the rows of each set are like: classes, scripts, languages and emoji."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.languages import has_emoji, language_of, script_of, shares
from peftkit.data.views import Picked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.data.example import Example

LOOKED_AT = 5000
"""Rows of a set whose words are looked at; a share is then known to within a point or so."""
NO_TAG = "O"
"""What a word has that belongs to no entity; it is always the commonest, so it does not count."""


def spread(examples: Sequence[Example], limit: int) -> Sequence[Example]:
    """At most so many examples, evenly apart, always the same ones."""
    if len(examples) <= limit:
        return examples
    return Picked(examples, np.arange(limit) * len(examples) // limit)


def count_classes(
    sets: Mapping[str, Sequence[Example]], labels: Sequence[str], task: str
) -> dict[str, Any]:
    """How often each class comes in each set, and how unequal that is among training rows."""
    found = {name: _count(examples, labels) for name, examples in sets.items()}
    counted = [
        count
        for label, count in found["train"]["counts"].items()
        if task != "token-classification" or label != NO_TAG
    ]
    smallest, largest = min(counted, default=0), max(counted, default=0)
    ratio = largest / smallest if smallest else None
    return {**found, "ratio": ratio, "of": "tags" if task == "token-classification" else "rows"}


def _count(examples: Sequence[Example], labels: Sequence[str]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for example in examples:
        counts.update(example.labels)
    total = max(sum(counts.values()), 1)
    return {
        "counts": {label: counts[label] for label in labels},
        "majority": max(counts.values(), default=0) / total,
        "lacking": [label for label in labels if not counts[label]],
    }


def describe_words(examples: Sequence[Example], limit: int = LOOKED_AT) -> dict[str, Any]:
    """Share of a set's rows by script, by language, and with an emoji."""
    scripts: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    emoji = 0
    looked_at = spread(examples, limit)
    for example in looked_at:
        scripts[script_of(example.text) or "none"] += 1
        languages[language_of(example.text)] += 1
        emoji += has_emoji(example.text)
    rows = len(looked_at)
    return {
        "rows": rows,
        "scripts": shares(scripts),
        "languages": shares(languages),
        "emoji": emoji / max(rows, 1),
    }
