"""Random numbers that depend on what they are for, never on when they are drawn.

The number of an entry follows from the seed, the adapter's content, the tensor's name and the
entry's place: neither the order of adapters nor the size of blocks changes one of them.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

_DRAWS = 4
"""Numbers that Philox makes of one value of its counter."""


def uniform(seed: int, digest: str, name: str, first: int, count: int) -> torch.Tensor:
    """Numbers from 0 up to 1 for entries from a place on, in float64."""
    text = "\0".join((str(seed), digest, name))
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    generator = np.random.Philox(key=key).advance(first // _DRAWS)
    skipped = first % _DRAWS
    raw = np.asarray(generator.random_raw(skipped + count))[skipped:]
    return torch.from_numpy((raw >> np.uint64(11)) * 2.0**-53)
