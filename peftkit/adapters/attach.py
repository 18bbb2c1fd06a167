"""Put an adapter on a frozen base: afterwards only its parameters train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model

from peftkit.base.targets import choose_blocks, choose_targets, linear_layers
from peftkit.base.upstream import quiet
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from peftkit.recipe.sections.adapter import AdapterSection, FullSection, LoraSection


def attach(model: Any, section: AdapterSection, *, seed: int) -> Any:
    """The model with a fresh adapter; until it trains, its outputs are the base's own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return METHODS[section.method](model, section)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def plain_model(model: Any) -> Any:
    """The transformers model itself, whatever adapter is wrapped around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _attach_lora(model: Any, section: LoraSection) -> Any:
    targets = choose_targets(model, section.targets)
    _refuse_too_wide(model, targets, section.rank)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # peft takes a float, and says int
        lora_dropout=section.dropout,
        target_modules=targets,
        layers_to_transform=choose_blocks(model, section.layers),
        fan_in_fan_out=_transposed(model, targets),
        task_type="CAUSAL_LM",
    )
    with quiet():
        return get_peft_model(model, config)


def _attach_full(model: Any, section: FullSection) -> Any:
    del section
    model.requires_grad_(requires_grad=True)
    return model


METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "lora": _attach_lora,
    "full": _attach_full,
}


def _transposed(model: Any, targets: list[str]) -> bool:
    """Whether the targets keep their weights as (in, out), as GPT-2 does."""
    from transformers.pytorch_utils import Conv1D

    return any(
        isinstance(layer, Conv1D)
        for name, layer in linear_layers(model).items()
        if name.rsplit(".", 1)[-1] in targets
    )


def _refuse_too_wide(model: Any, targets: list[str], rank: int) -> None:
    for name, layer in linear_layers(model).items():
        if name.rsplit(".", 1)[-1] in targets and rank > min(layer.weight.shape):
            rows, columns = layer.weight.shape
            raise RecipeError(
                f"adapter.rank: {rank} is above what `{name}` ({rows} × {columns}) can hold",
                hint=f"`--set adapter.rank={min(layer.weight.shape)}` or less",
            )
