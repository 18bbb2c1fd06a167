"""LoRA as peft has it, in the variant, the ranks and the scales that the recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from transformers.pytorch_utils import Conv1D

from peftkit.adapters.peft_methods import put_on, targeted, transposed
from peftkit.adapters.starts import ON_WEIGHTS, start_on_weights
from peftkit.adapters.whole import is_tied, whole_parts
from peftkit.base.quantize import plain_weight
from peftkit.base.targets import choose_blocks, choose_targets, means, shape_of_layer
from peftkit.base.tasks import peft_task_of
from peftkit.base.tokens import added_rows, token_matrices
from peftkit.errors import RecipeError
from peftkit.recipe.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from peftkit.recipe.sections.adapter import LoraSection


def attach_lora(model: Any, section: LoraSection) -> Any:
    """The model with low-rank updates, in the variant that the section names."""
    _refuse_section(section, peft_task_of(model))
    targets = choose_targets(model, section.targets)
    layers = targeted(model, targets, section.layers)
    ranks = match_names("adapter.rank_pattern", section.rank_pattern, layers)
    match_names("adapter.alpha_pattern", section.alpha_pattern, layers)
    _refuse_too_wide(layers, section, ranks)
    if section.variant == "dora":
        _refuse_empty_weights(layers)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # peft takes a float, and says int
        lora_dropout=section.dropout,
        lora_bias=section.bias,
        rank_pattern=dict(section.rank_pattern),
        alpha_pattern=dict(section.alpha_pattern),
        use_rslora=section.variant == "rslora",
        use_dora=section.variant == "dora",
        target_modules=targets,
        layers_to_transform=choose_blocks(model, section.layers),
        fan_in_fan_out=transposed(layers),
        trainable_token_indices=_token_rows(model),
        modules_to_save=whole_parts(model, section.also) or None,
        ensure_weight_tying=bool(section.also) and is_tied(model),
    )
    adapted = put_on(model, config)
    if section.variant == "dora":
        _measure_magnitudes(adapted)
    elif section.variant in ON_WEIGHTS:
        start_on_weights(adapted, section.variant)
    return adapted


def rate_factors(section: Any, names: Iterable[str]) -> dict[str, float]:
    """How much faster than the rest some parameters learn, by name: `B` of LoRA+, mostly none."""
    ratio = getattr(section, "b_learning_rate_ratio", 1.0)
    return {name: ratio for name in names if ".lora_B." in name and ratio != 1}


def match_names(key: str, pattern: Mapping[str, Any], layers: Iterable[str]) -> dict[str, str]:
    """Which name of `pattern` means each layer, where one does; peft would take the first.

    Raises:
        RecipeError: a name means no layer, or two mean the same one.
    """
    found: dict[str, str] = {}
    known = list(layers)
    for wanted in pattern:
        meant = [name for name in known if means(wanted, name)]
        if not meant:
            leaves = sorted({name.rsplit(".", 1)[-1] for name in known})
            near = nearest(wanted, [*leaves, *known])
            raise RecipeError(
                f"{key}: `{wanted}` is the name of no layer that the adapter goes on",
                hint=f"did you mean `{near}`?" if near else f"these are: {', '.join(leaves)}",
            )
        for name in meant:
            if name in found:
                raise RecipeError(
                    f"{key}: both `{found[name]}` and `{wanted}` mean `{name}`",
                    hint="write longer names, such as `layers.0.self_attn.q_proj`, for each layer",
                )
            found[name] = wanted
    return found


def _token_rows(model: Any) -> dict[str, list[int]] | None:
    """The rows of new tokens that train, by the matrix they are in."""
    rows = added_rows(model)
    return dict.fromkeys(token_matrices(model), rows) if rows else None


def _refuse_section(section: LoraSection, task: str | None) -> None:
    if section.variant == "eva" and task == "SEQ_2_SEQ_LM":
        raise RecipeError(
            "adapter.variant: eva starts from what a base makes of texts, and an encoder with a "
            "decoder needs pairs of them",
            hint="`--set adapter.variant=plain`",
        )
    if section.bias and section.variant == "dora":
        raise RecipeError(
            "adapter.bias: dora trains no biases beside its directions and lengths",
            hint="`--set adapter.bias=false`, or `--set adapter.variant=plain`",
        )


def _refuse_too_wide(
    layers: Mapping[str, Any], section: LoraSection, ranks: Mapping[str, str]
) -> None:
    """Say which layer cannot hold its rank; saved, a start on weights takes twice the rank."""
    shapes = {name: shape_of_layer(layer) for name, layer in layers.items()}
    for name, shape in sorted(shapes.items(), key=lambda item: min(item[1])):
        wanted = ranks.get(name)
        rank = section.rank if wanted is None else section.rank_pattern[wanted]
        doubles = section.variant in ON_WEIGHTS
        most = min(*shape, max(shape) // 2) if doubles else min(shape)
        if rank > most:
            where = "adapter.rank" if wanted is None else f"adapter.rank_pattern.{wanted}"
            twice = ", whose update is saved at twice the rank" if doubles else ""
            raise RecipeError(
                f"{where}: {rank} is above what `{name}` ({shape[0]} × {shape[1]}) can hold{twice}",
                hint=f"`--set {where}={most}` or less",
            )


def _refuse_empty_weights(layers: Mapping[str, Any]) -> None:
    """Say where an output has no weights: DoRA divides by their length."""
    for name, layer in layers.items():
        into = 0 if isinstance(layer, Conv1D) else 1
        weight = plain_weight(layer)
        if not weight.is_meta and not bool(weight.any(dim=into).all()):
            raise RecipeError(
                f"adapter.variant: dora divides by the length of each output's weights, and in "
                f"`{name}` one of them is 0",
                hint="`--set adapter.variant=plain`, or other `adapter.targets`",
            )


@torch.no_grad()
def _measure_magnitudes(model: Any) -> None:
    """Give each magnitude the digits that peft's forward pass divides by: in 16 bits it has fewer.

    Without them a fresh adapter would scale every output by the rounding of its magnitude.
    """
    for module in model.modules():
        for name, magnitude in getattr(module, "lora_magnitude_vector", {}).items():
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            weight = plain_weight(module.get_base_layer()).to(down.dtype)
            exact = magnitude.get_weight_norm(weight, up @ down, module.scaling[name])
            magnitude.weight.copy_(exact)
