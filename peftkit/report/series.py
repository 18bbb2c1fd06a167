"""Thin out and smooth a series of figures without hiding its extremes or its gaps."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

DRAWN = 800
"""Points a line keeps; more than a screen has columns for."""


def window(points: int) -> int:
    """How many neighbors a smoothed point averages: about a thirtieth of the series, and odd."""
    return max(1, round(points / 30) // 2 * 2 + 1)


def smoothed(values: Sequence[float | None], width: int) -> list[float | None]:
    """The centered moving average over the finite values; a gap where all neighbors are gaps.

    Centered, because a trailing average draws every fall of the loss later than it was.
    """
    raw = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    known = np.isfinite(raw)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, raw, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    # Near the ends the window is cut, not shrunk to nothing, or one step would pass for a mean.
    at = np.arange(raw.size)
    low, high = np.maximum(at - width // 2, 0), np.minimum(at + width // 2 + 1, raw.size)
    covered = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.maximum(covered, 1)
    return [
        float(mean) if seen else None for mean, seen in zip(means, covered.tolist(), strict=True)
    ]


def kept(values: Sequence[float | None], most: int = DRAWN) -> list[int]:
    """At most `most` positions: the ends, and the lowest and highest of each equal stretch.

    A stretch without finite values keeps one position, so that the line still breaks there.
    """
    if len(values) <= most:
        return list(range(len(values)))
    bounds = np.linspace(0, len(values), max(1, (most - 2) // 2) + 1).astype(int).tolist()
    chosen = {0, len(values) - 1}
    for low, high in pairwise(bounds):
        finite = [(value, at) for at in range(low, high) if (value := values[at]) is not None]
        chosen |= {min(finite)[1], max(finite)[1]} if finite else {low}
    return sorted(chosen)


def spread(points: int, most: int) -> list[int]:
    """At most `most` positions, evenly apart, the ends among them."""
    if points <= most:
        return list(range(points))
    return sorted({round(at) for at in np.linspace(0, points - 1, most).tolist()})
