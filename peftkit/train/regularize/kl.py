"""Distillation: on general text the model is to answer as the base does.

`a · mean over tokens of KL(p_base ‖ p)` (Hinton et al., 2015; Li & Hoiem, 2016), on rows that each
update looks at besides its own, chosen by seed and step. With `top` the base's likeliest tokens are
told apart and all others count as one, which is never more than the whole divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from peftkit.adapters.attach import base_only
from peftkit.data.batch import make_update
from peftkit.data.order import Shuffled
from peftkit.fast.loss import trained_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from peftkit.data.batch import Layout, Update
    from peftkit.data.example import Example

SMALLEST = 1e-9
"""Least probability that all other tokens together are taken for."""
Top = int | Literal["all"]


@dataclass(frozen=True, slots=True)
class General:
    """General text, and how much of it an update looks at."""

    rows: Sequence[Example]
    rows_per_step: int
    layout: Layout
    seed: int

    def at(self, step: int, part: int, parts: int) -> Update:
        """The rows of a step, a pure function of its number; of them, one process's part."""
        order = Shuffled(len(self.rows), self.seed)
        places = range((step - 1) * self.rows_per_step, step * self.rows_per_step)
        draws = [(self.seed, place) for place in places]
        return make_update(
            [self.rows[order.at(place)] for place in places],
            self.layout,
            part=part,
            parts=parts,
            draws=draws if self.layout.task.name == "masked-lm" else (),
        )


def distill(model: Any, update: Update, strength: float, top: Top = "all") -> Tensor:
    """The penalty, whose gradients are added; of a divided update, this process's share."""
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    for batch in update.micro_batches:
        placed = batch.to(device)
        model.eval()  # the base has no dropout
        with torch.no_grad(), base_only(model):
            wanted, _ = trained_scores(model, placed)
        model.train()
        found, _ = trained_scores(model, placed)
        share = strength * divergence(wanted, found, top).sum() / max(update.trained_tokens, 1)
        share.backward()
        total += share.detach()
    return total


def divergence(wanted: Tensor, found: Tensor, top: Top = "all") -> Tensor:
    """KL of each row of scores (rows, classes) from the one that is wanted, in nats."""
    p, q = wanted.log_softmax(-1), found.log_softmax(-1)
    if top == "all" or top >= p.shape[-1]:
        return (p.exp() * (p - q)).sum(-1)
    p, places = p.topk(top, dim=-1)
    q = q.gather(-1, places)
    p_rest, q_rest = (
        (1 - each.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST).log() for each in (p, q)
    )
    p, q = torch.cat([p, p_rest], -1), torch.cat([q, q_rest], -1)
    return (p.exp() * (p - q)).sum(-1)
