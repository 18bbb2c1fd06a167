"""The frozen-head loss: what `peftkit.fast.loss` computes, only where loss is and in chunks.

The backbone runs alone, the positions that carry loss are picked, and `project_losses` takes them
through the head; no tensor of tokens × vocabulary is ever made. Adapters work because peft puts
them into the backbone's own layers; what it does around a model is passed by, so an adapter that
needs it is refused. So is any wrapper for several processes: nothing is shared between them here.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch

from peftkit.data.batch import Batch
from peftkit.data.example import IGNORED
from peftkit.fast.chunked import Head, project_losses
from peftkit.fast.loss import token_losses
from peftkit.fast.refusals import SCALES, SOFTCAPS, forward_names, refusals, unwrap
from peftkit.fast.varlen import attending

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CHECKED_TOKENS = 64
"""Trained tokens that `check_head` looks at; it holds one row's logits up to the last of them."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""What `check_head` may find in a sound head, by the dtype of its weight: rounding, no more."""


def find_head(model: Any) -> Head | str:
    """The frozen head of a causal language model, or why this path is not for it."""
    if reason := next(refusals(model), None):
        return reason
    plain = unwrap(model)
    layer, names = plain.get_output_embeddings(), forward_names(plain)
    scale = prod(_read_scale(plain, name) for name in sorted(names & SCALES))
    config = plain.config.get_text_config()
    caps = [getattr(config, name) for name in sorted(names & SOFTCAPS)]
    return Head(layer.weight, layer.bias, scale, next(iter(caps), None))


def head_loss(
    model: Any, batch: Batch, head: Head, *, reduce: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Cross entropy over the trained tokens, in float32; 0 with a gradient where there are none."""
    losses, _ = _trained_losses(model, batch, head)
    return losses.sum() if reduce == "sum" else losses.sum() / max(len(losses), 1)


def head_token_losses(model: Any, batch: Batch, head: Head) -> Tensor:
    """Cross entropy of each position, (rows, time) in float32; 0 where nothing is trained."""
    losses, places = _trained_losses(model, batch, head)
    everywhere = losses.new_zeros(batch.targets.numel())
    return everywhere.index_copy(0, places.to(losses.device), losses).view_as(batch.targets)


def check_head(model: Any, batch: Batch, head: Head) -> float:
    """The largest relative difference to the plain path, in losses and hidden states' gradient.

    Without dropout, on one row of `batch` up to its first `CHECKED_TOKENS` trained tokens. A sound
    head stays within `TOLERANCE`. NaN, which is within nothing, where no token is trained.
    """
    row, backbone = cut_row(batch), unwrap(model).base_model
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        wanted = _differentiate(backbone, lambda: token_losses(model, row))
        found = _differentiate(backbone, lambda: head_token_losses(model, row, head))
    finally:
        for module in training:
            module.training = True
    differences = [
        (one.double() - other.double()).norm() / other.double().norm()
        for one, other in zip(found, wanted, strict=True)
    ]
    return float(torch.stack(differences).max())


def _trained_losses(model: Any, batch: Batch, head: Head) -> tuple[Tensor, Tensor]:
    """The loss of each trained token, and the tokens' places in the flattened batch."""
    positions = {} if batch.positions is None else {"position_ids": batch.positions}
    with attending(model, batch.lengths):
        outputs = unwrap(model).base_model(input_ids=batch.inputs, use_cache=False, **positions)
    hidden, targets = outputs.last_hidden_state.flatten(0, 1), batch.targets.flatten()
    places = (targets != IGNORED).nonzero()[:, 0] if batch.trained is None else batch.trained
    picked = hidden.index_select(0, places.to(hidden.device))
    return project_losses(picked, targets[places], head), places


def _read_scale(plain: Any, name: str) -> float:
    """The factor that a family's logits are multiplied by, from where its `forward` reads it."""
    if name == "logit_scale":
        return float(plain.logit_scale)
    if name == "lm_head_multiplier":
        return float(plain.base_model.lm_head_multiplier)
    config = plain.config.get_text_config()
    multiplies = config.model_type == "hyperclovax"  # Granite and MiniCPM divide
    return float(config.logits_scaling if multiplies else 1 / config.logits_scaling)


def cut_row(batch: Batch) -> Batch:
    """The row with most to train, up to its first `CHECKED_TOKENS` trained tokens."""
    trained = batch.targets != IGNORED
    row = int(trained.sum(dim=1).argmax())
    places = trained[row].nonzero()[:CHECKED_TOKENS, 0]
    end = int(places[-1]) + 1 if len(places) else 1
    cut = (slice(row, row + 1), slice(0, end))
    positions = None if batch.positions is None else batch.positions[cut]
    lengths = None if batch.lengths is None else _cut_lengths(batch.lengths, end)
    return Batch(batch.inputs[cut], batch.targets[cut], positions, end, lengths)


def _cut_lengths(lengths: tuple[int, ...], end: int) -> tuple[int, ...]:
    """Lengths of the documents in the first `end` tokens of a flat row."""
    kept = []
    for length in lengths:
        if end <= 0:
            break
        kept.append(min(length, end))
        end -= length
    return tuple(kept)


def _differentiate(backbone: Any, compute: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Losses, on the CPU, and their sum's gradient in the backbone's last hidden state."""
    leaves: list[Tensor] = []

    def cut_graph(_module: Any, _inputs: Any, outputs: Any) -> Any:
        leaves.append(outputs.last_hidden_state.detach().requires_grad_())
        outputs.last_hidden_state = leaves[-1]
        return outputs

    handle = backbone.register_forward_hook(cut_graph)
    try:
        losses = compute()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(losses.sum(), leaves)
    return losses.detach().cpu(), gradient.cpu()
