"""Losses of all tasks but writing on, and the outputs that they and predictions come from."""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
    normalize,
)

from peftkit.data.example import IGNORED
from peftkit.fast.refusals import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from peftkit.data.batch import Batch

A_TOKEN = ("masked-lm", "token-classification")
"""Tasks that score every token of the text."""
TEMPERATURE = 0.05
"""What cosines are divided by before the softmax over a batch: that of sentence-transformers."""


def outputs_of(model: Any, batch: Batch) -> Tensor:
    """What the model says of each row in float32: scores, or a vector of length 1 for each text."""
    settings: dict[str, Any] = {"attention_mask": batch.mask}
    if batch.types is not None:
        settings["token_type_ids"] = batch.types
    if batch.task.name == "seq2seq":
        shifted = model.prepare_decoder_input_ids_from_labels(batch.targets)
        settings["decoder_input_ids"] = shifted
    kind: Any = type(unwrap(model))
    if _takes_cache(kind):
        settings["use_cache"] = False  # a block that runs again would find its own keys there
    found = model(input_ids=batch.inputs, **settings)
    size = batch.inputs.shape[1]  # what an adapter puts before the text comes first
    if batch.task.name == "embedding":
        return average(found.last_hidden_state[:, -size:], batch.mask)
    scores: Tensor = found.logits
    return (scores[:, -size:] if batch.task.name in A_TOKEN else scores).float()


@cache  # the same for every step
def _takes_cache(kind: Any) -> bool:
    """Whether models of this class remember keys and values, and may be told not to."""
    return "use_cache" in inspect.signature(kind.forward).parameters


def losses_of(outputs: Tensor, batch: Batch) -> Tensor:
    """The losses of each row, from what the model said of it."""
    return LOSSES[batch.task.name](outputs, batch.targets)


def average(states: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of each text's states, brought to a length of 1."""
    if mask is None:
        raise ValueError("texts without a mask")
    weights = mask.unsqueeze(-1).float()
    means = (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    return normalize(means, dim=-1)


def compare_texts(vectors: Tensor, targets: Tensor) -> Tensor:
    """(rows, others) cosines of each anchor with every positive, then with every negative.

    Minus infinity where `targets` says that the two are not to be compared.
    """
    rows = len(targets)
    cosines = vectors[:rows] @ vectors[rows:].T
    return cosines.masked_fill(targets == IGNORED, float("-inf"))


def _each_class(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets[:, 0], reduction="none")[:, None]


def _each_token(outputs: Tensor, targets: Tensor) -> Tensor:
    flat = cross_entropy(
        outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view_as(targets)


def _each_label(outputs: Tensor, targets: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1, True)


def _each_value(outputs: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(outputs, targets, reduction="none").mean(1, True)


def _each_anchor(outputs: Tensor, targets: Tensor) -> Tensor:
    own = targets.argmax(1)
    cosines = compare_texts(outputs, targets)
    return cross_entropy(cosines / TEMPERATURE, own, reduction="none")[:, None]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "masked-lm": _each_token,
    "seq2seq": _each_token,
    "token-classification": _each_token,
    "classification": _each_class,
    "multi-label": _each_label,
    "regression": _each_value,
    "embedding": _each_anchor,
}
"""How each task's outputs become losses."""
