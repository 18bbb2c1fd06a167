"""Rows that are nearly the same: MinHash sketches, bands that agree, and the true overlap.

The sketches are datasketch's. Its index is not used: a row takes 8.0 kB in its dictionaries,
against 0.4 kB in sorted arrays, and it returns all rows of a band. Where many are alike, as those
of one template are, that is a pair for each two; here `CROWD` are looked at.

Of each hash one byte is kept. Two that differ agree in it once in 256 times, and a band, five of
them, once in 10^12; what is reported was verified by the texts themselves.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from peftkit.data.example import words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Sketches = NDArray[np.uint8]
    """(rows, `BANDS` * `ROWS`) a byte of a row's least shingle under each permutation."""
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
COMPARED = 1 << 14
"""Pairs whose sketches are compared at once."""
REMEMBERED = 256
"""Rows of each side whose shingles are kept; those of a long one take some hundred kB."""
SPREAD = np.uint32(0x9E3779B1)
"""What a hash is multiplied by, so that its first byte depends on all of it."""


def shingles_of(text: str) -> frozenset[str]:
    """Every run of five words; the whole of a text that has fewer."""
    words = words_of(text) or [text]
    last = max(len(words) - SHINGLE, 0)
    return frozenset(" ".join(words[start : start + SHINGLE]) for start in range(last + 1))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared shingles over all of both."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def sketch(texts: Iterable[str], count: int = -1) -> Sketches:
    """The sketch of each text; where their `count` is told, memory is that of the sketches."""
    from datasketch import MinHash  # it brings scipy, which takes longer to import than most runs

    encoded = ([each.encode("utf-8", "surrogatepass") for each in shingles_of(t)] for t in texts)
    made = MinHash.generator(encoded, num_perm=BANDS * ROWS, seed=1, scheme="affine32")
    bytewise = (each.hashvalues * SPREAD >> np.uint32(24) for each in made)
    return np.fromiter(bytewise, np.dtype((np.uint8, BANDS * ROWS)), count)


def pairs_within(sketches: Sketches) -> tuple[Places, Places]:
    """Places of likely pairs, the earlier row and the later one, in the order of the later."""
    codes = np.empty(0, np.int64)
    for band in range(BANDS):  # one after the other: all at once would take 25 times the memory
        keys, owners = _sort(_band(sketches, band))
        found = [codes]
        for step in range(1, CROWD + 1):
            same = np.flatnonzero(keys[step:] == keys[:-step])
            left, right = owners[same], owners[same + step]  # a stable sort left them in order
            found.append(_coded(right, left, len(sketches)))
        codes = np.unique(np.concatenate(found))
    right, left = np.divmod(codes, max(len(sketches), 1))
    likely = _agree(sketches, left, sketches, right)
    return left[likely], right[likely]


class Index:
    """The bands of a set that others are compared with."""

    def __init__(self, sketches: Sketches) -> None:
        self.sketches = sketches
        self.keys, order = _sort(_bands(sketches).ravel())
        self.owners = order // BANDS

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
    of_left = lru_cache(REMEMBERED)(lambda place: shingles_of(text(place)))
    of_right = lru_cache(REMEMBERED)(lambda place: shingles_of(other(place)))
    for one, two in zip(left.tolist(), right.tolist(), strict=True):
        found = similarity(of_left(one), of_right(two))
        if found >= NEAR:
            yield one, two, found


def _bands(sketches: Sketches) -> NDArray[np.uint64]:
    """(rows, `BANDS`) one number for what a row's sketch says in each band."""
    return np.stack([_band(sketches, band) for band in range(BANDS)], axis=1)


def _band(sketches: Sketches, band: int) -> NDArray[np.uint64]:
    """One number a row for what its sketch says in a band; the same in another is another one."""
    found = np.full(len(sketches), band, np.uint64)
    for at in range(band * ROWS, (band + 1) * ROWS):
        found = found << np.uint64(8) | sketches[:, at]
    return found


def _sort(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], Places]:
    """Numbers in order, and the place of each; equal ones in the order of their places."""
    order = np.argsort(keys, kind="stable")
    return keys[order], order


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
