"""Held-out loss row by row: what intervals, slices and comparisons are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from peftkit.data.batch import collate_task
from peftkit.data.task import CAUSAL, Task
from peftkit.data.views import numbers_of, some_of
from peftkit.fast.loss import each_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from peftkit.data.batch import Batch
    from peftkit.data.example import Example

    LossesFunction = Callable[[Any, Batch], Tensor]
    """The losses of each row of a batch: the plain ones, or a fast path that equals them."""

BATCH_TOKENS = 4096
"""Padded tokens a forward pass; memory stays far below a training step's."""


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Summed loss, trained tokens and trained bytes of each row, in the rows' order."""

    losses: NDArray[np.float64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]

    @property
    def per_token(self) -> float:
        """Mean loss over all trained tokens."""
        return float(self.losses.sum() / self.tokens.sum())

    @property
    def per_byte(self) -> float:
        """Loss per byte of text, comparable across tokenizers; NaN-free even without text."""
        return float(self.losses.sum() / max(int(self.bytes.sum()), 1))


def choose_rows(examples: Sequence[Example], limit: int) -> list[Example]:
    """At most `limit` rows, the same ones every time, whatever rows stand around them."""
    if len(examples) <= limit:
        return list(examples)
    chosen = np.argsort(numbers_of(examples, "key"), kind="stable")[:limit]
    return some_of(examples, np.sort(chosen))


@torch.inference_mode()
def measure_losses(
    model: Any,
    examples: Sequence[Example],
    tokenizer: Any,
    pad_id: int,
    *,
    losses_of: LossesFunction = each_loss,
    task: Task = CAUSAL,
) -> RowLosses:
    """Loss of every example on its trained tokens, with the model as it stands."""
    model.eval()
    device = next(model.parameters()).device
    losses = np.zeros(len(examples), np.float64)
    for indices in batches_by_length([example.length for example in examples], BATCH_TOKENS):
        batch = collate_task([examples[index] for index in indices], task, pad_id).to(device)
        losses[indices] = losses_of(model, batch).double().sum(dim=1).cpu().numpy()
    return RowLosses(
        losses,
        np.array([task.count(example) for example in examples], np.int64),
        np.array([_trained_bytes(example, tokenizer) for example in examples], np.int64),
    )


def batches_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of like lengths, each at most `budget` padded tokens or one row."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[index] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _trained_bytes(example: Example, tokenizer: Any) -> int:
    ids = example.tokens[example.trained].tolist()
    return len(tokenizer.decode(ids, skip_special_tokens=True).encode("utf-8", "replace"))
