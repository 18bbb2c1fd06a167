"""Documents of the lengths that real ones have, and how much of each carries loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from peftkit.data.example import Example

if TYPE_CHECKING:
    from collections.abc import Sequence

LOG_MEAN, LOG_SPREAD = 5.0, 0.8
SHORTEST, LONGEST = 8, 1024


def draw_documents(count: int, vocabulary: int, *, seed: int) -> list[Example]:
    """Random tokens in lognormal lengths; every token but the first of each carries loss."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(LOG_MEAN, LOG_SPREAD, count), SHORTEST, LONGEST).astype(int)
    return [
        _document(rng.integers(1, vocabulary, length, dtype=np.int32), number)
        for number, length in enumerate(lengths)
    ]


def thin_labels(documents: Sequence[Example], density: float) -> list[Example]:
    """The same documents, where only the last `density` of each carries loss, as an answer does."""
    thinned = []
    for document in documents:
        trained = np.arange(document.length) >= document.length - round(density * document.length)
        trained[0] = False
        thinned.append(Example(document.tokens, trained, document.where, document.digest, ""))
    return thinned


def count_tokens(documents: Sequence[Example]) -> int:
    """Real tokens, padding left out."""
    return sum(document.length for document in documents)


def _document(tokens: np.ndarray, number: int) -> Example:
    trained = np.ones(len(tokens), bool)
    trained[0] = False
    return Example(tokens, trained, f"document {number}", str(number), "")
