"""Losses of single tasks, where a batch decides what is compared."""

import numpy as np
import torch
from torch.nn.functional import normalize

from peftkit.data.example import Example
from peftkit.data.padded import tell_apart
from peftkit.fast.task_losses import LOSSES


def row(anchor: int, positive: int) -> Example:
    return Example(
        np.array([anchor, positive], np.int32),
        np.array([False, True]),
        "rows.jsonl:1",
        "",
        "",
        parts=(1, 1),
    )


def test_a_row_that_stands_twice_costs_what_it_costs_once() -> None:
    known = normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)

    def losses(*rows: tuple[int, int]) -> torch.Tensor:
        targets = tell_apart([row(*each) for each in rows])
        texts = [anchor for anchor, _ in rows] + [positive for _, positive in rows]
        return LOSSES["embedding"](known[texts], targets)[:, 0]

    once, twice = losses((0, 1), (2, 3)), losses((0, 1), (2, 3), (0, 1))
    assert torch.isfinite(twice).all()
    assert torch.allclose(twice[[0, 2]], once[[0, 0]])
    assert twice[1] > once[1]  # what is another text twice over pushes twice
