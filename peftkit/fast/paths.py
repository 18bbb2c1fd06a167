"""Which fast paths a run takes: each one proves itself on this very model, or says why not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from peftkit.fast.head import TOLERANCE, check_head, find_head, head_loss, head_token_losses
from peftkit.fast.loss import summed_loss, token_losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from peftkit.data.batch import Batch
    from peftkit.fast.chunked import Head
    from peftkit.recipe.sections.train import FastSection


@dataclass(frozen=True, slots=True)
class Paths:
    """The fast paths that are on; without any, everything goes the plain way."""

    head: Head | None = None

    @property
    def summed(self) -> Callable[[Any, Batch], Tensor]:
        """The summed loss of a batch, for training."""
        return summed_loss if self.head is None else partial(_by_head, self.head)

    @property
    def each(self) -> Callable[[Any, Batch], Tensor]:
        """The loss of each position of a batch, for evaluation."""
        return token_losses if self.head is None else partial(_each_by_head, self.head)


def choose_head(model: Any, section: FastSection, batch: Batch) -> tuple[Head | None, str]:
    """The frozen head if it may be used and gives the plain path's result, and the reason."""
    if section.head == "off":
        return None, "`train.fast.head: off`"
    head = find_head(model)
    if isinstance(head, str):
        return None, head
    error, allowed = check_head(model, batch, head), TOLERANCE[head.weight.dtype]
    if not error <= allowed:  # NaN is within nothing
        return None, f"it differs from the plain path by {error:.2g} on this base"
    return head, f"losses and gradients differ from the plain path by {error:.1g}"


def restore_paths(model: Any, *, head: bool) -> Paths:
    """The paths that a run was locked to, so that a resumed run takes the same ones."""
    found = find_head(model) if head else None
    return Paths(None if isinstance(found, str) else found)


def _by_head(head: Head, model: Any, batch: Batch) -> Tensor:
    return head_loss(model, batch, head)


def _each_by_head(head: Head, model: Any, batch: Batch) -> Tensor:
    return head_token_losses(model, batch, head)
