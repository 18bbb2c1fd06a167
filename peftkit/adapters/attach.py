"""Put an adapter on a frozen base: afterwards only its parameters train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peftkit.adapters.attach_bottleneck import attach_bottleneck
from peftkit.adapters.in_place import BEFORE, attach_in_place, putting_back
from peftkit.adapters.lora import attach_lora
from peftkit.adapters.peft_methods import attach_ia3, attach_oft, attach_vera
from peftkit.adapters.prompts import (
    attach_p_tuning,
    attach_prefix,
    attach_prompt,
    start_from_text,
)
from peftkit.adapters.several import using
from peftkit.adapters.starts import start_on_inputs
from peftkit.base.tokens import added_rows
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
    "head": attach_in_place,
    "top": attach_in_place,
    "full": attach_in_place,
}

UNDER = "_peftkit_under"
"""The attribute of a model that names the frozen adapters under the one that trains."""


def attach(
    model: Any,
    section: AdapterSection,
    *,
    seed: int,
    documents: Sequence[Sequence[int]] = (),
    tokenizer: Any = None,
) -> Any:
    """The model with a fresh adapter; until it trains, its outputs are the base's own.

    Only what stands before the text (`prefix`, `prompt`, `p-tuning`) has a say from the start.

    Args:
        model: the frozen base.
        section: what the recipe says of the adapter.
        seed: decides what is drawn.
        documents: token ids of training documents, for a variant that starts from what the base
            makes of them; without any, such a start is drawn, and its shapes are the same.
        tokenizer: the base's, for a method that may start as a text.
    """
    if added_rows(model) and section.method != "lora":
        raise RecipeError(
            f"base.add_tokens: {section.method} trains no rows for new tokens",
            hint="`--set adapter.method=lora`, or no new tokens",
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = METHODS[section.method](model, section)
        if text := getattr(section, "init_text", None):
            start_from_text(adapted, tokenizer, text)
    if documents and section.method == "lora" and section.variant == "eva":
        start_on_inputs(adapted, documents)
    return adapted


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def base_only(model: Any) -> AbstractContextManager[None]:
    """Inside, the model answers as it did before the adapter that trains was put on it.

    Where that is an earlier adapter which goes on training, as it did before it went on.
    """
    if BEFORE in vars(model):
        return putting_back(model)
    return using(model, getattr(model, UNDER, ()))
