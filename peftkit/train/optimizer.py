"""AdamW over the parameters that train, in groups that say what decays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.nn import Parameter

BETAS = (0.9, 0.999)


def make_optimizer(
    parameters: Mapping[str, Parameter], *, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW whose learning rate the loop sets; vectors (biases, norms) never decay."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=0.0, betas=BETAS)
