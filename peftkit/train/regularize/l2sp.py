"""L2-SP: half the squared size of the change of the weights, and of a new head its own.

`a/2 · Σ ‖ΔW‖² + b/2 · Σ ‖w_head‖²` (Li, Grandvalet & Davoine, 2018). For LoRA the change of a layer
is `ΔW = s · B A`, and its squared size is `s² · tr((Bᵀ B)(A Aᵀ))`: two products of the rank's size,
and nothing of the layer's. It is of the product alone, so `B M⁻¹` and `M A` cost what `B` and `A`
do; weight decay of `A` and `B` is something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.train.regularize.penalty import add_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from peftkit.train.regularize.parts import Parts


def l2sp(parts: Parts, strength: float, head: float = 0.0) -> Tensor:
    """The penalty, whose gradients are added to those of the parameters."""
    return add_up(_pieces(parts, strength, head))


def squared_size(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """The squared Frobenius norm of `scale · up · down`, which is never formed."""
    return scale**2 * ((up.t() @ up) * (down @ down.t())).sum()


def _pieces(parts: Parts, strength: float, head: float) -> Iterator[Tensor]:
    for update in parts.updates:
        yield strength / 2 * squared_size(*update.factors(), update.scale)
        if update.bias is not None:
            yield strength / 2 * (update.scale * update.bias).square().sum()
    for name, parameter in parts.others.items():
        start = parts.starts[name].to(parameter.device)
        yield strength / 2 * (parameter.float() - start.float()).square().sum()
    if head:
        for parameter in parts.heads.values():
            yield head / 2 * parameter.float().square().sum()
