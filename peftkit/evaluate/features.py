"""What the frozen base makes of each text: the mean of its last states, one vector a row.

A vector says what the base knows before anything is learnt. Probes, the search for wrong labels and
measures of shift are built on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from peftkit.data.batch import collate_task
from peftkit.evaluate.losses import BATCH_TOKENS, batches_by_length
from peftkit.fast.refusals import unwrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example
    from peftkit.data.task import Task


@torch.inference_mode()
def features_of(
    model: Any, examples: Sequence[Example], task: Task, pad_id: int
) -> NDArray[np.float32]:
    """(rows, width) the mean of each text's last states, with the model as it stands.

    Inside `base_only` that is the base. What a prompt method puts before the text is not seen.
    """
    model.eval()
    body = body_of(model)
    device = next(model.parameters()).device
    found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(examples)
    for indices in batches_by_length([example.length for example in examples], BATCH_TOKENS):
        batch = collate_task([examples[index] for index in indices], task, pad_id).to(device)
        lengths = torch.tensor([examples[index].length for index in indices], device=device)
        mask = torch.arange(batch.inputs.shape[1], device=device) < lengths[:, None]
        settings = {} if batch.types is None else {"token_type_ids": batch.types}
        states = body(batch.inputs, attention_mask=mask.long(), **settings).last_hidden_state
        weights = mask[..., None].float()
        means = (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
        for index, row in zip(indices, means.cpu().numpy(), strict=True):
            found[index] = row
    return np.stack(found)


def body_of(model: Any) -> Any:
    """The blocks of a model without its head; of two stacks, the one that reads."""
    plain = unwrap(model)
    if plain.config.is_encoder_decoder:
        return plain.get_encoder()
    return plain.base_model
