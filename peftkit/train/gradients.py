"""The gradient norm of each block of the model, from gradients that were scaled down together.

Looked at every `EVERY` steps and at spikes: on a GPU each look is a wait, on a CPU some hundred
small sums, which at every step would cost about a hundredth of a tiny one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.utils import get_total_norm

from peftkit.base.targets import block_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

EVERY = 20
"""Steps between two looks."""


def group_by_block(parameters: Mapping[str, Parameter]) -> dict[str, list[Parameter]]:
    """The parameters of each block, in the model's order."""
    found: dict[str, list[Parameter]] = {}
    for name, parameter in parameters.items():
        found.setdefault(block_name(name), []).append(parameter)
    return found


def norms_of(blocks: Mapping[str, Sequence[Tensor]], whole: float) -> dict[str, float]:
    """The gradient norm of each block, where that of all of them together was `whole`.

    Scaling the gradients down keeps their shares, so clipped ones do as well.
    """
    norms = [
        get_total_norm([each.grad for each in own if each.grad is not None])
        for own in blocks.values()
    ]
    each = torch.stack([norm.to(norms[0].device) for norm in norms]).double()
    total = float(each.norm())
    scale = whole / total if total else 0.0
    return {
        name: float(f"{scale * value:.4g}")
        for name, value in zip(blocks, each.tolist(), strict=True)
    }
