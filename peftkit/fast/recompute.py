"""Blocks that keep only what enters them and run again for the backward pass: memory for time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from peftkit.base.targets import list_blocks
from peftkit.fast.refusals import unwrap

if TYPE_CHECKING:
    from collections.abc import Sequence


def refuse_recompute(model: Any) -> str | None:
    """Why the blocks of this model cannot run again, if so."""
    adapters = getattr(model, "peft_config", {}).values()
    if any(adapter.peft_type == "PREFIX_TUNING" for adapter in adapters):
        return "a block that runs again would find the keys and values of the text in the prefix"
    if all(isinstance(block, GradientCheckpointingLayer) for block in list_blocks(unwrap(model))):
        return None
    return "the blocks of its family cannot run again for the backward pass"


def recompute(model: Any, count: int) -> None:
    """Let the highest `count` blocks run again; below the adapters there is nothing to save."""
    blocks: Sequence[Any] = list_blocks(unwrap(model))
    for number, block in enumerate(reversed(blocks)):
        block.gradient_checkpointing = number < count
        # A reentrant one needs inputs with a gradient, which frozen blocks do not have.
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
