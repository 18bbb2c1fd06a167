"""The loss of a batch, as its task has it: the plain path that fast ones must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.functional import cross_entropy

from peftkit.data.example import IGNORED
from peftkit.fast.task_losses import losses_of, outputs_of
from peftkit.fast.varlen import attending

if TYPE_CHECKING:
    from torch import Tensor

    from peftkit.data.batch import Batch


def summed_loss(model: Any, batch: Batch) -> Tensor:
    """The loss summed over all that is trained, in float32."""
    return each_loss(model, batch).sum()


def each_loss(model: Any, batch: Batch) -> Tensor:
    """The losses of each row, (rows, decisions) in float32; 0 where nothing is trained."""
    if batch.task.packs:
        return token_losses(model, batch)
    return losses_of(outputs_of(model, batch), batch)


def token_losses(model: Any, batch: Batch) -> Tensor:
    """Cross entropy of each position of a text, (rows, time) in float32; 0 if none is trained."""
    return cross_entropy(
        token_logits(model, batch).float().flatten(0, 1),
        batch.targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view_as(batch.targets)


def token_logits(model: Any, batch: Batch) -> Tensor:
    """(rows, time, vocabulary) logits of a text.

    No attention mask is passed: padding stands last, where causal attention never looks, and
    documents that share a row are told apart by their positions (with the cache off, without
    which transformers would not look for them), or by their lengths in a flat row. An adapter that
    puts embeddings before the text has logits of these as well, which come first.
    """
    places = {} if batch.positions is None else {"position_ids": batch.positions}
    with attending(model, batch.lengths):
        logits = model(input_ids=batch.inputs, use_cache=False, **places).logits
    found: Tensor = logits[:, -batch.targets.shape[1] :]
    return found


def trained_scores(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores of every class or token where one is to be told, (places, classes), and which it is.

    For tasks whose loss is a cross entropy over classes or tokens.
    """
    scores = token_logits(model, batch) if batch.task.packs else outputs_of(model, batch)
    targets = batch.targets.flatten()
    places = (targets != IGNORED).nonzero()[:, 0]
    flat = scores.reshape(-1, scores.shape[-1])
    return flat.index_select(0, places).float(), targets[places]
