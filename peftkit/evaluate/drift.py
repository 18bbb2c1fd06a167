"""How far a model went from its base: in its weights, block by block, and in what it predicts.

A low-rank update is never multiplied out: the norm of BA follows from two small matrices, r by r.
Blocks are gone through one weight after another, so nothing of the model's size is made.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.nn.functional import kl_div, log_softmax

from peftkit.adapters.attach import base_only
from peftkit.adapters.in_place import BEFORE
from peftkit.adapters.starts import ADAPTER
from peftkit.adapters.updates import LayerUpdate
from peftkit.base.quantize import plain_weight
from peftkit.base.targets import block_name
from peftkit.base.tasks import new_parts
from peftkit.data.batch import collate_task
from peftkit.data.example import IGNORED
from peftkit.data.task import CAUSAL
from peftkit.evaluate.losses import batches_by_length, choose_rows
from peftkit.fast.loss import token_logits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from peftkit.data.batch import Batch
    from peftkit.data.example import Example

ROWS = 64
"""Rows of each source on which predictions are compared."""
TOKENS = 1024
"""Tokens of a forward pass, whose logits are held twice."""
POSITIONS = 128
"""Positions whose probabilities are computed at once, in float32."""


def measure_update(model: Any) -> dict[str, float]:
    """By block, the norm of what changed in its adapted weights over the norm of those weights.

    Empty where the method changes no weights of the base: prompts, prefixes, scalings, networks,
    a new head.
    """
    changed: dict[str, float] = {}
    whole: dict[str, float] = {}
    for name, change, weight in _changes(model):
        block = block_name(name)
        changed[block] = changed.get(block, 0.0) + change**2
        whole[block] = whole.get(block, 0.0) + weight**2
    return {
        block: math.sqrt(changed[block] / whole[block]) for block in changed if whole[block] > 0
    }


def _changes(model: Any) -> Iterator[tuple[str, float, float]]:
    """Each changed weight's name, the norm of its change, and its own norm before."""
    before: dict[str, Tensor] = getattr(model, BEFORE, {})
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and _is_plain(module):
            update = LayerUpdate(name, module, before)
            weight = plain_weight(update.base)
            yield f"{name}.weight", _norm_of_update(update), float(weight.float().norm())
    if isinstance(model, PeftModel):  # what else trained in it is no weight of the base
        return
    heads = tuple(f"{name}." for name in new_parts(model))  # drawn at random: no base knew them
    for name, parameter in model.named_parameters():
        if name in before and not name.startswith(heads):
            old = before[name].to(parameter.device, torch.float32)
            yield name, float((parameter.detach().float() - old).norm()), float(old.norm())


def _is_plain(layer: Any) -> bool:
    """Whether what trains is the product of two matrices, and acts."""
    if ADAPTER not in layer.active_adapters or ADAPTER not in layer.lora_A:
        return False
    return ADAPTER not in layer.lora_variant and layer.lora_A[ADAPTER].weight.ndim == 2


def _norm_of_update(update: LayerUpdate) -> float:
    a, b = (factor.detach().double() for factor in update.factors())
    square = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0)
    return float(abs(update.scale) * square.sqrt())


@torch.inference_mode()
def measure_divergence(model: Any, examples: Sequence[Example], pad_id: int) -> float:
    """Mean divergence of what is predicted from what the base predicts: KL(base, model), in nats.

    Over the trained tokens of at most `ROWS` rows of text.
    """
    model.eval()
    device = next(model.parameters()).device
    chosen = choose_rows(examples, ROWS)
    total, count = 0.0, 0
    for indices in batches_by_length([example.length for example in chosen], TOKENS):
        batch = collate_task([chosen[index] for index in indices], CAUSAL, pad_id).to(device)
        with base_only(model):
            before = _at_targets(model, batch)
        found = _divergences(before, _at_targets(model, batch))
        total, count = total + found, count + len(before)
    return total / max(count, 1)


def _at_targets(model: Any, batch: Batch) -> Tensor:
    """(decisions, vocabulary) logits, where something is trained."""
    found: Tensor = token_logits(model, batch)[batch.targets != IGNORED]
    return found


def _divergences(before: Tensor, after: Tensor) -> float:
    """KL of each position, summed; a part of them at a time."""
    parts = zip(before.split(POSITIONS), after.split(POSITIONS), strict=True)
    return sum(
        float(
            kl_div(
                log_softmax(new.float(), -1),
                log_softmax(old.float(), -1),
                reduction="sum",
                log_target=True,
            )
        )
        for old, new in parts
    )
