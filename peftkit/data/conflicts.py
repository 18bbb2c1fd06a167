"""The same text with two labels, or the same question with two answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.duplicates import shorten
from peftkit.data.hashed import answer_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.data.hashed import Hashed

SHOWN = 50


def find_conflicts(train: Hashed, held: Mapping[str, Hashed]) -> dict[str, Any]:
    """What `data.json` says of texts that have several labels or answers.

    `rows` counts training rows whose text other training rows label otherwise, `texts` such texts,
    and `held_out` rows of each other set that a training row contradicts.
    """
    within, rows = _within(train)
    pairs = [_describe("train", train, one, train, two) for one, two in within[:SHOWN]]
    counts = {}
    for name, other in held.items():
        across = _across(train, other)
        counts[name] = len(across)
        left = SHOWN - len(pairs)
        pairs += [_describe(name, train, one, other, two) for one, two in across[:left]]
    labeled = len(train) > 0 and bool(train.examples[0].labels)
    return {"rows": rows, "texts": len(within), "held_out": counts, "labeled": labeled} | {
        "pairs": pairs
    }


def _within(train: Hashed) -> tuple[list[tuple[int, int]], int]:
    """Of each text with several answers the first row and the first that differs; rows in all."""
    places = np.flatnonzero(train.asked)
    order = places[np.lexsort((places, train.asked[places]))]
    _, start, text = np.unique(train.asked[order], return_index=True, return_inverse=True)
    differs = train.answers[order] != train.answers[order[start]][text]
    texts, first = np.unique(text[differs], return_index=True)
    other = order[np.flatnonzero(differs)[first]]
    one = order[start[texts]]
    rows = int(np.isin(text, texts).sum())
    return sorted(zip(one.tolist(), other.tolist(), strict=True)), rows


def _across(train: Hashed, other: Hashed) -> list[tuple[int, int]]:
    """The first training row that contradicts one of the other set, and that row."""
    known = np.flatnonzero(np.isin(train.asked, other.asked[other.asked > 0]))
    answers: dict[int, list[int]] = {}
    for place in known.tolist():
        seen = answers.setdefault(int(train.asked[place]), [])
        if all(train.answers[place] != train.answers[old] for old in seen):
            seen.append(place)
    found = []
    for row, (asked, answer) in enumerate(zip(other.asked, other.answers, strict=True)):
        against = (at for at in answers.get(int(asked), ()) if train.answers[at] != answer)
        found += [(place, row) for place in [next(against, None)] if place is not None]
    return found


def _describe(name: str, one: Hashed, left: int, other: Hashed, right: int) -> dict[str, Any]:
    """Two rows that contradict each other; `set` is the one that the second is of."""
    first, second = one.examples[left], other.examples[right]
    return {
        "set": name,
        "left": first.where,
        "right": second.where,
        "labels": [shorten(answer_of(each) or "", 200) for each in (first, second)],
        "text": shorten(first.prompt, 200),
    }
