"""R-Drop: two passes that differ by dropout alone are to agree.

`a/4 · (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁))` beside the mean loss of the two passes (Liang et al., 2021):
half of the paper's sum of both losses and `a/2` of both divergences, so that the loss, and with it
the learning rate, stays that of a plain run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def disagreement(one: Tensor, other: Tensor, strength: float) -> Tensor:
    """The penalty of two passes' scores (places, classes), summed over the places."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    both_ways = (p.exp() - q.exp()) * (p - q)  # KL(p ‖ q) + KL(q ‖ p), term by term
    return strength / 4 * both_ways.sum()
