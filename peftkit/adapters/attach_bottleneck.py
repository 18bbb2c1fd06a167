"""Put bottleneck adapters where a recipe says: after attention, after the MLP, or beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.pytorch_utils import Conv1D

from peftkit.adapters.bottleneck import BottleneckConfig
from peftkit.adapters.peft_methods import put_on
from peftkit.base.parts import after_attention, after_mlp, block_list, whole_mlp
from peftkit.base.targets import choose_blocks, linear_layers, means
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from peftkit.recipe.sections.adapter import BottleneckSection


def attach_bottleneck(model: Any, section: BottleneckSection) -> Any:
    """The model with a small network of two layers in each block, or two of them."""
    names, without = _places(model, section.variant)
    width = int(model.config.get_text_config().hidden_size)
    size = max(1, width // section.reduction) if section.size == "auto" else section.size
    if size > width:
        raise RecipeError(
            f"adapter.size: {size} is wider than the base, which has a width of {width}: "
            "nothing would be a bottleneck",
            hint=f"`--set adapter.size={max(1, width // 16)}`, or anything up to {width}",
        )
    blocks = choose_blocks(model, section.layers)
    config = BottleneckConfig(
        bottleneck_size=size,
        reduction_factor=section.reduction,
        non_linearity=section.activation,
        variant=section.variant,
        scaling=section.scale,
        dropout=section.dropout,
        target_modules=list(names),
        exclude_modules=list(without) or None,
        layers_to_transform=blocks,
        layers_pattern=None if blocks is None else [block_list(model)],
        fan_in_fan_out=_transposed(model, names),
    )
    return put_on(model, config)


def _places(model: Any, variant: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the modules that carry adapters, and longer ones that do not."""
    mlp = whole_mlp(model) if variant == "parallel" else after_mlp(model)
    if variant != "houlsby":
        return mlp.names, mlp.without
    attention = after_attention(model).names
    return (*attention, *mlp.names), tuple(n for n in mlp.without if n not in attention)


def _transposed(model: Any, names: tuple[str, ...]) -> bool:
    """Whether a module that carries an adapter keeps its weights as (in, out), as GPT-2 does."""
    return any(
        isinstance(layer, Conv1D) and any(means(wanted, name) for wanted in names)
        for name, layer in linear_layers(model).items()
    )
