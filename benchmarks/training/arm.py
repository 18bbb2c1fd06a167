"""What every arm of the comparison can do, whatever trains underneath."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from peftkit.data.example import Example

LEARNING_RATE = 2e-4
PADDED_ROWS = 8
"""Rows of a padded micro-batch: TRL's default."""
PACKED_WIDTH = 1024
"""Tokens of a packed row: TRL's default, and no document is longer."""
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A loss per trained token and its gradients, by the adapter's own names."""

    loss: float
    gradients: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Timed:
    """One optimizer update: its CPU seconds and the loss before it."""

    seconds: float
    loss: float


@dataclass(frozen=True, slots=True)
class Work:
    """What an arm's arithmetic is, for the count of operations."""

    dtype: torch.dtype
    """Of its matrix products."""
    backward: float = 1.0
    """Share of the blocks that a gradient passes."""
    forward: float = 1.0
    """Share of the blocks that are computed at all."""
    layers: tuple[int, ...] | None = None
    """The blocks that carry an adapter; None for all."""


class Arm(Protocol):
    """One way to train a LoRA of rank 16 on every linear layer of the blocks."""

    model: Any
    work: Work

    def reset(self) -> None:
        """Back to the adapter that every arm starts from, with an optimizer that saw nothing."""

    def read(self, documents: Sequence[Example]) -> Reading:
        """Loss and gradients over documents, by the same path that `step` takes."""

    def step(self, documents: Sequence[Example]) -> Timed:
        """One optimizer update over documents."""
