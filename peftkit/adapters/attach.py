"""Put an adapter on a frozen base: afterwards only its parameters train."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from peftkit.base.targets import choose_blocks, choose_targets, linear_layers, means
from peftkit.base.upstream import quiet
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from peftkit.recipe.sections.adapter import AdapterSection, FullSection, LoraSection


def attach(model: Any, section: AdapterSection, *, seed: int) -> Any:
    """The model with a fresh adapter; until it trains, its outputs are the base's own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return METHODS[section.method](model, section)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def base_only(model: Any) -> AbstractContextManager[Any]:
    """Inside, the model answers as the base it was before the adapter was put on it."""
    if not isinstance(model, PeftModel):
        return nullcontext()
    without: AbstractContextManager[Any] = model.disable_adapter()
    return without


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
        isinstance(layer, Conv1D) and any(means(target, name) for target in targets)
        for name, layer in linear_layers(model).items()
    )


def _refuse_too_wide(model: Any, targets: list[str], rank: int) -> None:
    shapes = {
        name: tuple(layer.weight.shape)
        for name, layer in linear_layers(model).items()
        if any(means(target, name) for target in targets)
    }
    name, shape = min(shapes.items(), key=lambda item: min(item[1]))
    if rank > min(shape):
        raise RecipeError(
            f"adapter.rank: {rank} is above what `{name}` ({shape[0]} × {shape[1]}) can hold",
            hint=f"`--set adapter.rank={min(shape)}` or less",
        )
