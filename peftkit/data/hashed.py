"""What rows say as numbers of eight bytes, so that sets of any size can be compared at once.

Two different texts of a million fall on the same number with a chance of 3 in 100 million.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from peftkit.data.example import normalize
from peftkit.data.views import Chained, Picked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example

    Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Hashed:
    """Examples, and a hash of what each says, is asked and answers."""

    examples: Sequence[Example]
    keys: Hashes
    """Of the normalized text: the beginning of `Example.key`."""
    asked: Hashes
    """Of what an answer or label is expected to; 0 where none is."""
    answers: Hashes

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.keys)

    def pick(self, places: NDArray[np.int64]) -> Hashed:
        """Some of the rows; all of them as they are."""
        if len(places) == len(self):
            return self
        examples = Picked(self.examples, places)
        return Hashed(examples, self.keys[places], self.asked[places], self.answers[places])

    def followed_by(self, other: Hashed) -> Hashed:
        """These rows, and then those of another set."""
        if not len(other):
            return self
        return Hashed(
            Chained([self.examples, other.examples]),
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.asked, other.asked]),
            np.concatenate([self.answers, other.answers]),
        )


def hash_rows(examples: Sequence[Example]) -> Hashed:
    """Read every row once, and keep what it says as numbers."""
    found = np.fromiter(
        (number for example in examples for number in _hashes_of(example)),
        np.uint64,
        3 * len(examples),
    ).reshape(-1, 3)
    return Hashed(examples, *np.ascontiguousarray(found.T))


def hash_text(text: str) -> int:
    """The first eight bytes of the sha256 of a text."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8])


def answer_of(example: Example) -> str | None:
    """The label or answer that a row expects; None where another one would do as well.

    An anchor has many texts that mean the same.
    """
    if example.format == "similar" or not example.prompt.strip():
        return None
    return ", ".join(sorted(example.labels)) if example.labels else example.answer


def _hashes_of(example: Example) -> tuple[int, int, int]:
    own = int(example.key[:16], 16)
    answer = answer_of(example)
    if answer is None:
        return own, 0, 0
    asked = own if example.prompt == example.text else hash_text(normalize(example.prompt))
    return own, asked, hash_text(normalize(answer))
