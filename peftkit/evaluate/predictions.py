"""What a model decides on each row of a set, where it decides rather than writes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from peftkit.data.batch import collate_task
from peftkit.evaluate.losses import BATCH_TOKENS, batches_by_length
from peftkit.fast.task_losses import compare_texts, losses_of, outputs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example
    from peftkit.data.task import Task


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


def _predict_alike(model: Any, examples: Sequence[Example], task: Task, pad_id: int) -> Predictions:
    """Every anchor against the positives, and negatives, of all rows at once."""
    device = next(model.parameters()).device
    count = min(len(example.parts) for example in examples)
    vectors: dict[int, torch.Tensor] = {}
    for indices in batches_by_length([example.length for example in examples], BATCH_TOKENS):
        batch = collate_task([examples[index] for index in indices], task, pad_id).to(device)
        found = outputs_of(model, batch)
        found = found.view(-1, len(indices), found.shape[-1])[:count]
        vectors |= {index: found[:, row] for row, index in enumerate(indices)}
    together = torch.cat([vectors[index] for index in range(len(examples))])
    together = together.view(len(examples), count, -1).transpose(0, 1).flatten(0, 1)
    whole = collate_task(examples, task, pad_id).to(device)
    losses = losses_of(together, whole).double()[:, 0].cpu().numpy()
    cosines = compare_texts(together, len(examples))[:, : len(examples)]
    return Predictions(losses, list(cosines.double().cpu().numpy()))
