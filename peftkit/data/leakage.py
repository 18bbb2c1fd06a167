"""Rows to judge by that are also training rows: the same text, or nearly.

The held-out side is indexed and the training side goes by, so memory is that of the held-out side
and a few numbers for each training row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.duplicates import shorten
from peftkit.data.near import Index, sketch, verify
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.data.hashed import Hashed

CHUNK = 4096
"""Training rows that are compared at once."""
SHOWN = 50


@dataclass(frozen=True, slots=True)
class Pair:
    """A held-out row and the training row it repeats."""

    kind: str
    similarity: float
    left: str
    right: str
    text: str
    row: int
    """The place of the held-out row in its set."""


@dataclass(frozen=True, slots=True)
class Leaks:
    """What two sets share."""

    pairs: tuple[Pair, ...]
    """One for each held-out row that repeats a training row: with the closest, the first such."""
    trained: frozenset[int]
    """Places of all training rows that a held-out row repeats."""

    def count(self, kind: str) -> int:
        """How many held-out rows repeat a training row in this way."""
        return sum(pair.kind == kind for pair in self.pairs)

    @property
    def facts(self) -> dict[str, int]:
        """The numbers of such held-out rows."""
        return {"exact": self.count("exact"), "near": self.count("near")}


NO_LEAKS = Leaks((), frozenset())


@dataclass(frozen=True, slots=True)
class Settled:
    """What the policy leaves of every set, and what there was."""

    train: Hashed
    held: Mapping[str, Hashed]
    leaked: Mapping[str, frozenset[str]]
    """Of each set that is judged by, the digests of the rows that leaked and were kept."""
    facts: Mapping[str, Any]
    """What `data.json` says of leakage."""


def find_leaks(train: Hashed, held: Hashed) -> Leaks:
    """Held-out rows that repeat a training row, and the training rows they repeat."""
    keys, first = np.unique(train.keys, return_index=True)
    known = np.isin(held.keys, keys)
    closest = {
        row: (1.0, int(first[np.searchsorted(keys, held.keys[row])]))
        for row in np.flatnonzero(known).tolist()
    }
    trained = set(np.flatnonzero(np.isin(train.keys, held.keys)).tolist())
    _add_near(train, held, closest, trained)
    pairs = tuple(
        _pair(train, place, held, row, found) for row, (found, place) in sorted(closest.items())
    )
    return Leaks(pairs, frozenset(trained))


def _add_near(
    train: Hashed, held: Hashed, closest: dict[int, tuple[float, int]], trained: set[int]
) -> None:
    """Add what is nearly the same: for each held-out row the closest training row, and all."""
    texts = [example.text for example in held.examples]
    index = Index(sketch(texts))
    for start in range(0, len(train), CHUNK):
        part = [example.text for example in train.examples[start : start + CHUNK]]
        theirs, ours = index.pairs(sketch(part))
        for one, two, found in verify(theirs, ours, part.__getitem__, texts.__getitem__):
            trained.add(start + one)
            if found > closest.get(two, (0.0, 0))[0]:
                closest[two] = (found, start + one)


def settle_leaks(
    policy: str, train: Hashed, held: Mapping[str, Hashed], apart: Mapping[str, Hashed]
) -> Settled:
    """Look for training rows in the sets to judge by, and do what the policy says.

    `held` are the sets that the run is judged by: to `remove` leaves the rows out of these. What
    is `apart` must not be trained on: there, the training rows are left out. Test rows that are
    also validation rows were not trained on, so they are only told.

    Raises:
        InputError: a row is also trained on, and the policy is `error`.
    """
    if policy == "off":
        nothing: dict[str, Any] = {
            "exact": None,
            "near": None,
            "pairs": [],
            "policy": policy,
            "sets": {},
            "between": {"exact": None, "near": None},
        }
        return Settled(train, held, {}, nothing)
    both = held.keys() >= {"validation", "test"}
    between = find_leaks(held["validation"], held["test"]) if both else NO_LEAKS
    found = {name: find_leaks(train, rows) for name, rows in {**held, **apart}.items()}
    if policy == "error":
        _refuse_copies({name: leaks for name, leaks in found.items() if name != "remember"})
    facts = _describe(policy, found, held) | {"between": between.facts}
    facts["pairs"] = [*facts["pairs"], *_shown("validation and test", between)][:SHOWN]
    if policy != "remove":
        leaked = {
            name: frozenset(rows.examples[pair.row].digest for pair in found[name].pairs)
            for name, rows in held.items()
        }
        return Settled(train, held, leaked, facts)
    gone = sorted({place for name in apart for place in found[name].trained})
    clean = {
        name: rows.pick(np.delete(np.arange(len(rows)), [pair.row for pair in found[name].pairs]))
        for name, rows in held.items()
    }
    left = train.pick(np.delete(np.arange(len(train)), gone))
    return Settled(left, clean, {}, facts | {"left_out_of_training": len(gone)})


def _refuse_copies(found: Mapping[str, Leaks]) -> None:
    exact = [pair for leaks in found.values() for pair in leaks.pairs if pair.kind == "exact"]
    if not exact:
        return
    raise InputError(
        f"{len(exact)} held-out {'row is' if len(exact) == 1 else 'rows are'} also trained on",
        problems=[f"{p.right} repeats {p.left}: `{shorten(p.text, 50)}`" for p in exact[:9]],
        hint="`data.leakage: remove` leaves them out of the evaluation; "
        "`warn` keeps them and says so in the report",
    )


def _describe(
    policy: str, found: Mapping[str, Leaks], held: Mapping[str, Hashed]
) -> dict[str, Any]:
    judged = [pair for name in held for pair in found[name].pairs]
    shown = [pair for name, leaks in found.items() for pair in _shown(name, leaks)]
    exact = sum(pair.kind == "exact" for pair in judged)
    return {
        "exact": exact,
        "near": len(judged) - exact,
        "pairs": shown[:SHOWN],
        "policy": policy,
        "sets": {name: leaks.facts for name, leaks in found.items()},
    }


def _shown(name: str, leaks: Leaks) -> list[dict[str, Any]]:
    return [
        {"kind": p.kind, "similarity": p.similarity, "left": p.left, "right": p.right}
        | {"text": shorten(p.text, 200), "set": name}
        for p in leaks.pairs
    ]


def _pair(train: Hashed, place: int, held: Hashed, row: int, found: float) -> Pair:
    left, right = train.examples[place], held.examples[row]
    kind = "exact" if train.keys[place] == held.keys[row] else "near"
    return Pair(kind, round(found, 4), left.where, right.where, right.text, row)
