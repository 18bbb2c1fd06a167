"""Duplicates, splits, label conflicts and leaks, in the order in which they are settled.

Duplicates come first, so that leaving them out also unties groups that share a text; what is made
of training rows afterwards, such as noisy copies, never reaches the held-out side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.conflicts import find_conflicts
from peftkit.data.duplicates import settle_duplicates
from peftkit.data.hashed import hash_rows
from peftkit.data.leakage import settle_leaks
from peftkit.data.split import hold_out
from peftkit.errors import InputError
from peftkit.recipe.sections.split import SplitSection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.data.example import Example
    from peftkit.data.hashed import Hashed
    from peftkit.recipe.sections.data import DataSection

    Sets = Mapping[str, Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Checks:
    """What was found while rows were told apart."""

    leakage: Mapping[str, Any]
    duplicates: Mapping[str, Any]
    conflicts: Mapping[str, Any]
    split: Mapping[str, Any]
    """What `split.json` says: of each set that was held out, how, and its rows by digest."""
    leaked: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Of each set that is judged by, the digests of the rows that leaked and were kept."""


def splits_of(section: DataSection) -> dict[str, SplitSection]:
    """The sets that are held out of the training rows; the one that is looked at last, first."""
    named = {"test": section.test, "validation": section.validation}
    return {name: split for name, split in named.items() if isinstance(split, SplitSection)}


def check_rows(
    section: DataSection,
    splits: Mapping[str, SplitSection],
    train: Sequence[Example],
    named: Sets,
    apart: Sets,
    replay: Sequence[Example] = (),
) -> tuple[Sequence[Example], dict[str, Sequence[Example]], Checks]:
    """What is left to train on, the sets to judge by, and what was found.

    Args:
        section: the policies.
        splits: the sets to hold out of the training rows.
        train: all rows of the training sources.
        named: sets to judge by that have sources of their own.
        apart: sets that must not be trained on either.
        replay: rows to be mixed in after the training rows. Any other row would do as well, so
            those that are judged by are simply not among them; else they count as training rows.
    """
    every = hash_rows(train)
    rows, duplicates = settle_duplicates(section.duplicates, every)
    rows, held = hold_out(rows, splits)
    split = dict.fromkeys(("validation", "test")) | {
        name: {"fraction": splits[name].fraction, "by": splits[name].by}
        | {"rows": [example.digest for example in found.examples]}
        for name, found in held.items()
    }
    others = {name: hash_rows(examples) for name, examples in {**named, **apart}.items()}
    sets = {**held, **others}
    judged: dict[str, Hashed] = {}
    judged |= {name: sets[name] for name in ("validation", "test") if name in sets}
    # Of rows that say the same, the one that was left out may be the one that is labeled rightly.
    conflicts = find_conflicts(_without(every, held), judged)
    away = {name: others[name] for name in apart if len(others[name])}
    general = _without(hash_rows(replay), judged)
    settled = settle_leaks(section.leakage, rows.followed_by(general), judged, away)
    for name, found in {"training": settled.train, **settled.held}.items():
        if not len(found):
            raise InputError(
                f"every {name} row is in two sets, so `data.leakage: remove` leaves none",
                hint="take other rows to judge by",
            )
    checks = Checks(settled.facts, duplicates, conflicts, split, settled.leaked)
    left = {name: found.examples for name, found in settled.held.items()}
    return settled.train.examples, left, checks


def _without(rows: Hashed, sets: Mapping[str, Hashed]) -> Hashed:
    """The rows that say nothing that a row of these sets says."""
    keys = [np.empty(0, np.uint64), *(found.keys for found in sets.values())]
    return rows.pick(np.flatnonzero(~np.isin(rows.keys, np.concatenate(keys))))
