"""What a model decides on each row of a set, where it decides rather than writes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from peftkit.data.batch import collate_task
from peftkit.data.padded import tell_apart
from peftkit.evaluate.losses import (
    BATCH_TOKENS,
    RowLosses,
    batches_by_length,
    measure_losses,
)
from peftkit.fast.task_losses import LOSSES, compare_texts, losses_of, outputs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example
    from peftkit.data.task import Task
    from peftkit.evaluate.losses import LossesFunction


@dataclass(frozen=True, slots=True)
class Predictions:
    """Summed loss and scores of each row, in the rows' order."""

    losses: NDArray[np.float64]
    scores: Sequence[NDArray[np.float64]]
    """(labels,) a row; (tokens with a tag, labels) for tags; (rows,) cosines with each positive."""


@torch.inference_mode()
def predict_all(model: Any, examples: Sequence[Example], task: Task, pad_id: int) -> Predictions:
    """The scores of every row, with the model as it stands."""
    model.eval()
    device = next(model.parameters()).device
    if task.name == "embedding":
        return _predict_alike(model, examples, task, pad_id)
    losses = np.zeros(len(examples), np.float64)
    scores: dict[int, NDArray[np.float64]] = {}
    for indices in batches_by_length([example.length for example in examples], BATCH_TOKENS):
        own = [examples[index] for index in indices]
        batch = collate_task(own, task, pad_id).to(device)
        outputs = outputs_of(model, batch)
        losses[indices] = losses_of(outputs, batch).double().sum(dim=1).cpu().numpy()
        for row, index in enumerate(indices):
            found = outputs[row].double().cpu().numpy()
            tagged = task.name == "token-classification"
            scores[index] = found[: own[row].length][own[row].trained] if tagged else found
    return Predictions(losses, [scores[index] for index in range(len(examples))])


def measure_rows(
    model: Any,
    examples: Sequence[Example],
    tokenizer: Any,
    pad_id: int,
    *,
    losses_of: LossesFunction,
    task: Task,
) -> RowLosses:
    """Loss of every example; texts that are compared are so among all rows, not within batches."""
    if task.name != "embedding":
        return measure_losses(model, examples, tokenizer, pad_id, losses_of=losses_of, task=task)
    ones = np.ones(len(examples), np.int64)
    return RowLosses(predict_all(model, examples, task, pad_id).losses, ones, 0 * ones)


def _predict_alike(model: Any, examples: Sequence[Example], task: Task, pad_id: int) -> Predictions:
    """Every anchor against the positives, and negatives, of all rows at once."""
    device = next(model.parameters()).device
    vectors: dict[tuple[int, int], torch.Tensor] = {}
    for indices in batches_by_length([example.length for example in examples], BATCH_TOKENS):
        own = [examples[index] for index in indices]
        found = outputs_of(model, collate_task(own, task, pad_id).to(device))
        places = [(part, row) for part in range(3) for row in range(len(own))]
        kept = [(part, row) for part, row in places if part < len(own[row].parts)]
        vectors |= {
            (part, indices[row]): vector for (part, row), vector in zip(kept, found, strict=True)
        }
    together = torch.stack([vectors[place] for place in sorted(vectors)])
    targets = tell_apart(examples).to(device)
    losses = LOSSES[task.name](together, targets).double()[:, 0].cpu().numpy()
    cosines = compare_texts(together, targets)[:, : len(examples)]
    return Predictions(losses, list(cosines.double().cpu().numpy()))
