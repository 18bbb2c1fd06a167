"""Put an adapter on a frozen base: afterwards only its parameters train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peftkit.adapters.in_place import attach_in_place
from peftkit.adapters.peft_methods import attach_ia3, attach_lora, attach_oft, attach_vera
from peftkit.adapters.several import using

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from peftkit.recipe.sections.adapter import AdapterSection

METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "lora": attach_lora,
    "ia3": attach_ia3,
    "vera": attach_vera,
    "oft": attach_oft,
    "layernorm": attach_in_place,
    "bitfit": attach_in_place,
    "head": attach_in_place,
    "top": attach_in_place,
    "full": attach_in_place,
}

UNDER = "_peftkit_under"
"""The attribute of a model that names the frozen adapters under the one that trains."""


def attach(model: Any, section: AdapterSection, *, seed: int) -> Any:
    """The model with a fresh adapter; until it trains, its outputs are the base's own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return METHODS[section.method](model, section)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def base_only(model: Any) -> AbstractContextManager[None]:
    """Inside, the model answers as it did before the adapter that trains was put on it."""
    return using(model, getattr(model, UNDER, ()))
