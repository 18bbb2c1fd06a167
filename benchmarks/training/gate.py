"""The equality gate: an arm that computes something else has no speed worth a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arm import Reading

LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-3}
LEAST_COSINE = 0.999
LEARNING_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far an arm's loss and gradients are from the reference's."""

    loss_error: float
    """Relative."""
    cosine: float
    norm_ratio: float
    equal: bool


def compare(reading: Reading, reference: Reading, dtype: torch.dtype) -> Verdict:
    """Whether an arm trains what the reference trains."""
    loss_error = abs(reading.loss - reference.loss) / abs(reference.loss)
    if reading.gradients.keys() != reference.gradients.keys():
        return Verdict(loss_error, 0.0, 0.0, equal=False)
    one, other = _flatten(reading), _flatten(reference)
    cosine = float(one @ other / (one.norm() * other.norm()))
    equal = loss_error <= LOSS_TOLERANCE[dtype] and cosine > LEAST_COSINE
    return Verdict(loss_error, cosine, float(one.norm() / other.norm()), equal)


def compare_learning(losses: Sequence[float], reference: Sequence[float]) -> float | None:
    """How much the loss fell over the epochs, as a share of how much the reference's did.

    Gradients can be right while small updates are lost in rounding; this shows it.
    """
    fell, wanted = losses[0] - losses[-1], reference[0] - reference[-1]
    return fell / wanted if wanted else None


def learns_alike(learnt: float | None) -> bool:
    """Whether that share is near enough to 1, where there was something to compare with."""
    return learnt is None or abs(learnt - 1) <= LEARNING_TOLERANCE


def _flatten(reading: Reading) -> torch.Tensor:
    gradients = reading.gradients
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])
