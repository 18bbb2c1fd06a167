"""Rows that are nearly the same: MinHash sketches, bands that agree, and the true overlap.

The sketches are datasketch's. Its index is not used: a row takes 8.0 kB in its dictionaries,
against 0.4 kB in sorted arrays, and it returns all rows of a band. Where many are alike, as those
of one template are, that is a pair for each two; here `CROWD` are looked at.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from peftkit.data.example import words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Sketches = NDArray[np.uint32]
    """(rows, `BANDS` * `ROWS`) the least hash of a row's shingles under each permutation."""
    Places = NDArray[np.int64]
    Texts = Sequence[str] | Callable[[int], str]

SHINGLE = 5
"""Words that overlap as one unit."""
NEAR = 0.8
"""Jaccard similarity of two rows' shingles from which they count as nearly the same."""
BANDS, ROWS = 25, 5
"""A pair of similarity 0.8 agrees in some band with a chance of 1 - (1 - 0.8^5)^25: 0.99995."""
LIKELY = 0.64
"""Share of agreeing hashes from which a pair is verified: 4.5 standard errors below `NEAR`."""
CROWD = 16
"""Rows of one band that a row is compared with at most."""
COMPARED = 1 << 16
"""Pairs whose sketches are compared at once."""


def shingles_of(text: str) -> frozenset[str]:
    """Every run of five words; the whole of a text that has fewer."""
    words = words_of(text) or [text]
    last = max(len(words) - SHINGLE, 0)
    return frozenset(" ".join(words[start : start + SHINGLE]) for start in range(last + 1))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared shingles over all of both."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def sketch(texts: Iterable[str]) -> Sketches:
    """The sketch of each text."""
    from datasketch import MinHash  # it brings scipy, which takes longer to import than most runs

    encoded = ([each.encode("utf-8", "surrogatepass") for each in shingles_of(t)] for t in texts)
    made = MinHash.generator(encoded, num_perm=BANDS * ROWS, seed=1, scheme="affine32")
    return np.fromiter((each.hashvalues for each in made), np.dtype((np.uint32, BANDS * ROWS)))


def pairs_within(sketches: Sketches) -> tuple[Places, Places]:
    """Places of likely pairs, the earlier row and the later one, in the order of the later."""
    keys, owners = _sorted_bands(sketches)
    codes = [np.empty(0, np.int64)]
    for step in range(1, CROWD + 1):
        same = keys[step:] == keys[:-step]
        left, right = owners[:-step][same], owners[step:][same]
        codes.append(_coded(right[left < right], left[left < right], len(sketches)))
    right, left = np.divmod(np.unique(np.concatenate(codes)), max(len(sketches), 1))
    likely = _agree(sketches, left, sketches, right)
    return left[likely], right[likely]


class Index:
    """The bands of a set that others are compared with."""

    def __init__(self, sketches: Sketches) -> None:
        self.sketches = sketches
        self.keys, self.owners = _sorted_bands(sketches)

    def pairs(self, sketches: Sketches) -> tuple[Places, Places]:
        """Places of likely pairs: a row of `sketches` and one of the set."""
        keys = _bands(sketches).ravel()
        first = np.searchsorted(self.keys, keys, "left")
        count = np.minimum(np.searchsorted(self.keys, keys, "right") - first, CROWD)
        hits = np.repeat(np.arange(len(keys)), count)
        within = np.arange(len(hits)) - np.repeat(np.cumsum(count) - count, count)
        owners = self.owners[first[hits] + within]
        codes = np.unique(_coded(hits // BANDS, owners, len(self.sketches)))
        theirs, ours = np.divmod(codes, max(len(self.sketches), 1))
        likely = _agree(sketches, theirs, self.sketches, ours)
        return theirs[likely], ours[likely]


def verify(
    left: Places, right: Places, text: Callable[[int], str], other: Callable[[int], str]
) -> Iterator[tuple[int, int, float]]:
    """The pairs that overlap by `NEAR` or more, and by how much."""
    of_left = lru_cache(4096)(lambda place: shingles_of(text(place)))
    of_right = lru_cache(4096)(lambda place: shingles_of(other(place)))
    for one, two in zip(left.tolist(), right.tolist(), strict=True):
        found = similarity(of_left(one), of_right(two))
        if found >= NEAR:
            yield one, two, found


def _bands(sketches: Sketches) -> NDArray[np.uint64]:
    """(rows, `BANDS`) one number for what a row's sketch says in each band."""
    draw = np.random.default_rng(0)
    factors = draw.integers(0, 1 << 63, (BANDS, ROWS), np.uint64) * np.uint64(2) + np.uint64(1)
    parts = sketches.reshape(-1, BANDS, ROWS)
    found = np.zeros(parts.shape[:2], np.uint64)
    for at in range(ROWS):  # all at once would take four times the memory
        found += parts[:, :, at] * factors[:, at]
    return found


def _sorted_bands(sketches: Sketches) -> tuple[NDArray[np.uint64], Places]:
    """All bands in order, and the row each is of; rows of the same band in their own order."""
    keys = _bands(sketches).ravel()
    order = np.argsort(keys, kind="stable")
    return keys[order], order // BANDS


def _coded(high: Places, low: Places, base: int) -> Places:
    return np.unique(high.astype(np.int64) * base + low)


def _agree(one: Sketches, left: Places, other: Sketches, right: Places) -> NDArray[np.bool_]:
    """Whether enough of two sketches is the same for the pair to be verified."""
    parts = [np.empty(0, np.bool_)]
    for start in range(0, len(left), COMPARED):
        part = slice(start, start + COMPARED)
        same = (one[left[part]] == other[right[part]]).mean(axis=1)
        parts.append(same >= LIKELY)
    return np.concatenate(parts)
