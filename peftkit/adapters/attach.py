"""Put an adapter on a frozen base: afterwards only its parameters train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from peftkit.adapters.attach_bottleneck import attach_bottleneck
from peftkit.adapters.in_place import attach_in_place, putting_back
from peftkit.adapters.peft_methods import attach_ia3, attach_lora, attach_oft, attach_vera
from peftkit.adapters.prompts import (
    attach_p_tuning,
    attach_prefix,
    attach_prompt,
    start_from_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from peftkit.recipe.sections.adapter import AdapterSection

METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "lora": attach_lora,
    "ia3": attach_ia3,
    "vera": attach_vera,
    "oft": attach_oft,
    "bottleneck": attach_bottleneck,
    "prefix": attach_prefix,
    "prompt": attach_prompt,
    "p-tuning": attach_p_tuning,
    "layernorm": attach_in_place,
    "bitfit": attach_in_place,
    "top": attach_in_place,
    "full": attach_in_place,
}


def attach(model: Any, section: AdapterSection, *, seed: int, tokenizer: Any = None) -> Any:
    """The model with a fresh adapter; until it trains, its outputs are the base's own.

    Only what stands before the text (`prefix`, `prompt`, `p-tuning`) has a say from the start.

    Args:
        model: the frozen base.
        section: the recipe's.
        seed: of what is drawn.
        tokenizer: the base's, for a method that may start as a text.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = METHODS[section.method](model, section)
        if text := getattr(section, "init_text", None):
            start_from_text(adapted, tokenizer, text)
        return adapted


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def base_only(model: Any) -> AbstractContextManager[Any]:
    """Inside, the model answers as the base it was before the adapter was put on it."""
    if not isinstance(model, PeftModel):
        return putting_back(model)
    without: AbstractContextManager[Any] = model.disable_adapter()
    return without
