"""Documents packed into rows of one length: best fit, longest first, the same every time."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


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
