"""Elastic weight consolidation: a change costs as much as general text depends on the weight.

`a/2 · Σ F · (ΔW)²` (Kirkpatrick et al., 2017), with `a/2` and not `a`, and `F` from single
documents (`fisher`). It needs the change number by number, so LoRA's product is formed, for one
layer at a time, and forgotten once its gradients are taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.train.regularize.fisher import BIAS, WEIGHT
from peftkit.train.regularize.penalty import add_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from peftkit.train.regularize.parts import Parts


def ewc(parts: Parts, fisher: Mapping[str, Tensor], strength: float) -> Tensor:
    """The penalty, whose gradients are added to those of the parameters."""
    return add_up(_pieces(parts, fisher, strength))


def _pieces(parts: Parts, fisher: Mapping[str, Tensor], strength: float) -> Iterator[Tensor]:
    for update in parts.updates:
        down, up = update.factors()
        change = update.scale * (up.float() @ down.float())
        yield strength / 2 * (fisher[f"{update.name}.{WEIGHT}"] * change.square()).sum()
        if update.bias is not None:
            moved = update.scale * update.bias.float()
            yield strength / 2 * (fisher[f"{update.name}.{BIAS}"] * moved.square()).sum()
    for name, parameter in parts.others.items():
        moved = parameter.float() - parts.starts[name].to(parameter.device).float()
        yield strength / 2 * (fisher[name] * moved.square()).sum()
