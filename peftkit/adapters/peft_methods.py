"""Methods of peft beside LoRA: its configuration of each, and what it gets wrong told before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import IA3Config, OFTConfig, VeraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from peftkit.adapters.head import widen_heads
from peftkit.base.targets import (
    choose_attention_and_mlp,
    choose_blocks,
    choose_targets,
    in_blocks,
    linear_layers,
    means,
    shape_of_layer,
)
from peftkit.base.tasks import new_parts, peft_task_of
from peftkit.base.upstream import quiet
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.recipe.sections.adapter import Ia3Section, OftSection, VeraSection


def attach_ia3(model: Any, section: Ia3Section) -> Any:
    """The model with a factor for each output of some layers, and each input of others."""
    targets, inner = choose_attention_and_mlp(model, section.targets, section.feedforward)
    config = IA3Config(
        target_modules=targets,
        feedforward_modules=inner,
        fan_in_fan_out=transposed(targeted(model, targets)),
    )
    return put_on(model, config)


def attach_vera(model: Any, section: VeraSection) -> Any:
    """The model with vectors around random matrices that follow from the seed and are saved."""
    targets = choose_targets(model, section.targets)
    layers = targeted(model, targets, section.layers)
    most = max(max(shape_of_layer(layer)) for layer in layers.values())
    if section.rank > most:
        raise RecipeError(
            f"adapter.rank: {section.rank} is above the widest target, which has {most} "
            "inputs or outputs",
            hint=f"`--set adapter.rank={most}` or less",
        )
    config = VeraConfig(
        r=section.rank,
        projection_prng_key=torch.initial_seed(),
        save_projection=True,  # without it, another release of torch would draw others
        vera_dropout=section.dropout,
        target_modules=targets,
        layers_to_transform=choose_blocks(model, section.layers),
        fan_in_fan_out=transposed(layers),
    )
    return put_on(model, config)


def attach_oft(model: Any, section: OftSection) -> Any:
    """The model with the inputs of its layers turned, block by block."""
    targets = choose_targets(model, section.targets)
    layers = targeted(model, targets, section.layers)
    _refuse_other_blocks(layers, section.block_size)
    config = OFTConfig(
        r=0,
        oft_block_size=section.block_size,
        module_dropout=section.dropout,
        use_cayley_neumann=False,  # the short series is a rotation only while it has hardly turned
        target_modules=targets,
        layers_to_transform=choose_blocks(model, section.layers),
    )
    return put_on(model, config)


def put_on(model: Any, config: Any) -> Any:
    """The model with an adapter as peft makes it, in silence, and the head that its task needs."""
    config.task_type = peft_task_of(model)
    if new := new_parts(model):
        config.modules_to_save = [*(config.modules_to_save or ()), *new]
    with quiet():
        adapted = get_peft_model(model, config)
    widen_heads(adapted)
    return adapted


def targeted(
    model: Any, targets: Sequence[str], layers: str | Sequence[int] = "all"
) -> dict[str, Any]:
    """The layers that targets and block numbers mean together."""
    blocks = choose_blocks(model, layers)
    return {
        name: layer
        for name, layer in linear_layers(model).items()
        if any(means(target, name) for target in targets) and in_blocks(name, blocks)
    }


def transposed(layers: dict[str, Any]) -> bool:
    """Whether the targets keep their weights as (in, out), as GPT-2 does."""
    return any(isinstance(layer, Conv1D) for layer in layers.values())


def _refuse_other_blocks(layers: dict[str, Any], size: int) -> None:
    """Say which layer cannot be turned; peft would round the size without a word."""
    for name, layer in layers.items():
        if isinstance(layer, Conv1D):
            raise RecipeError(
                f"adapter.method: oft cannot turn `{name}`, whose weight lies transposed",
                hint="`--set adapter.method=lora --set adapter.variant=dora` fits this base",
            )
        if layer.in_features % size:
            fits = next(n for n in range(size, 0, -1) if _divides_all(n, layers))
            other = f"`--set adapter.block_size={fits}`" if fits > 1 else "choose other targets"
            raise RecipeError(
                f"adapter.block_size: {size} does not divide the {layer.in_features} inputs "
                f"of `{name}`",
                hint=f"{other}, which divides those of all targets" if fits > 1 else other,
            )


def _divides_all(size: int, layers: dict[str, Any]) -> bool:
    return all(layer.in_features % size == 0 for layer in layers.values())
