"""Decay to the start: half the squared distance of the parameters from where they began.

`a/2 · Σ ‖p − p₀‖²` (L2 Init; Kumar et al., 2023). Of LoRA it is of `A` and `B` each, and not of
what they do together; it fits every method, `prefix` and `ia3` as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.train.regularize.penalty import add_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn import Parameter


def decay_to_init(
    parameters: Mapping[str, Parameter], starts: Mapping[str, Tensor], strength: float
) -> Tensor:
    """The penalty, whose gradients are added to those of the parameters."""
    return add_up(
        strength / 2 * (parameter.float() - starts[name].float()).square().sum()
        for name, parameter in parameters.items()
    )
