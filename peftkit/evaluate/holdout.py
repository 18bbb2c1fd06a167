"""Rows that a search sees and rows that it never does, and whether it does as well on both."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.views import numbers_of, some_of
from peftkit.errors import InputError
from peftkit.evaluate.compare import draw_ratio, interval, resample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.example import Example
    from peftkit.evaluate.evaluation import Evaluation


def divide(
    examples: Sequence[Example], share: float, name: str
) -> tuple[list[Example], list[Example]]:
    """Rows to search on, and about a `share` of them held back; copies stay together.

    A row is told by its text alone, so its side does not depend on where it stands in the file.

    Raises:
        InputError: there are too few rows to divide.
    """
    keys = numbers_of(examples, "key").tolist()
    ordered = sorted(dict.fromkeys(keys), key=_shuffled)
    if len(ordered) < 2:
        raise InputError(
            f"`{name}`: a search takes rows of its own and leaves others to be judged by, and of "
            f"the {len(examples)} rows no two differ",
            hint="name a source with more rows",
        )
    held = set(ordered[: min(max(round(share * len(ordered)), 1), len(ordered) - 1)])
    sides = np.array([key in held for key in keys])
    return (
        some_of(examples, np.flatnonzero(~sides)),
        some_of(examples, np.flatnonzero(sides)),
    )


def _shuffled(key: int) -> bytes:
    """A number that has nothing to do with the key, by which evaluated rows are chosen already."""
    return hashlib.sha256(b"holdout" + key.to_bytes(8)).digest()


def disagree(
    searched: tuple[Evaluation, Evaluation], held: tuple[Evaluation, Evaluation], *, seed: int
) -> dict[str, Any]:
    """The change of loss on both parts, from first to second, and the interval of its difference.

    The two parts share no row, so each is drawn anew by itself.
    """
    changes, drawn = [], []
    for number, (before, after) in enumerate((searched, held)):
        rows, tokens = after.rows.losses - before.rows.losses, before.rows.tokens
        draws = resample(len(rows), seed + number)
        changes.append(float(rows.sum() / tokens.sum()))
        drawn.append(draw_ratio(rows, tokens, draws))
    low, high = interval(drawn[1] - drawn[0])
    return {
        "searched": changes[0],
        "held": changes[1],
        "difference": changes[1] - changes[0],
        "low": low,
        "high": high,
    }
