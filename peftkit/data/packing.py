"""Documents packed into rows of one length: best fit, longest first, the same every time."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DRAWN = 64
"""Updates from which the fill of all is told."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the documents in each row, no row above `capacity` tokens.

    Each document, longest first, goes into the fullest row that still takes it. Rows come in the
    order of their first document in the data, and so do the documents in a row.
    """
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], -1))
        if place < len(room):
            left, row = room.pop(place)
        else:
            left, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        if left > lengths[index]:
            insort(room, (left - lengths[index], row))
    return sorted(sorted(row) for row in rows)


def fill(lengths: Sequence[int], rows: Sequence[Sequence[int]], capacity: int) -> float:
    """Share of the packed rows' positions that hold a token."""
    return sum(lengths) / (len(rows) * capacity) if rows else 0.0


def expected_fill(
    lengths: NDArray[np.int64], *, rows: int, micro_rows: int, packing: bool, seed: int
) -> float:
    """Share of the positions of forward passes that hold a token, as updates are laid out.

    An update has few documents to choose from, so its rows are less full than those of a whole set
    would be. Without packing its rows stand alone, those of like lengths together.
    """
    drawn = np.random.default_rng(seed).permutation(len(lengths))[: rows * DRAWN]
    places = 0
    for start in range(0, len(drawn), rows):
        own = lengths[drawn[start : start + rows]].tolist()
        widths = sorted(own)
        if packing:
            widths = [sum(own[index] for index in row) for row in pack(own, max(own))]
        for first in range(0, len(widths), micro_rows):
            group = widths[first : first + micro_rows]
            places += len(group) * max(group)
    return float(lengths[drawn].sum() / places) if places else 0.0
