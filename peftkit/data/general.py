"""General text beside the rows that are learned, kept apart from what a run is judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from peftkit.data.hashed import hash_rows
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.example import Example


def keep_apart(
    name: str, rows: Sequence[Example], judged: Sequence[Sequence[Example]]
) -> Sequence[Example]:
    """The rows that say nothing that a row says by which the run is judged.

    Raises:
        InputError: none is left.
    """
    every = hash_rows(rows)
    keys = [np.empty(0, np.uint64), *(hash_rows(each).keys for each in judged)]
    left = every.pick(np.flatnonzero(~np.isin(every.keys, np.concatenate(keys)))).examples
    if not left:
        raise InputError(
            f"train.regularize.{name}: its source has no row besides those the run is judged by",
            hint="name general text that is in neither `evaluate.remember` nor the held-out rows",
        )
    return left
