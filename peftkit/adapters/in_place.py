"""Methods that train some of the base's own parameters, and can put the base's numbers back.

What such a parameter was before training is kept beside the model, so that the base can be asked
again: a copy of what trains, which is little for biases and norms and a second base for `full`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from peftkit.adapters.head import choose_head_parameters
from peftkit.base.targets import count_blocks, final_norm, is_norm, list_blocks
from peftkit.base.tasks import new_parts
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from peftkit.recipe.sections.adapter import AdapterSection, TopSection

BEFORE = "_peftkit_before"
"""The attribute of a model under which its parameters lie as they were before training."""
LOADED = "_is_hf_initialized"
"""The attribute by which transformers knows a parameter that must not be drawn anew."""


def attach_in_place(model: Any, section: AdapterSection) -> Any:
    """The model itself, of whose own parameters those of the method train."""
    parameters = CHOICES[section.method](model, section)
    _refuse_packed(parameters, section.method)
    chosen = {id(parameter) for parameter in parameters}
    new = [model.get_submodule(name) for name in new_parts(model)]
    chosen |= {id(parameter) for module in new for parameter in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    keep_before(model, (name for name, p in model.named_parameters() if id(p) in chosen))
    if count := getattr(section, "reset", 0):
        _reset_top(model, count)
    return model


def _refuse_packed(parameters: Iterable[Tensor], method: str) -> None:
    """Say that a base which was published quantized has no matrices to train."""
    if not all(parameter.is_floating_point() for parameter in parameters):
        raise RecipeError(
            f"adapter.method: {method} trains the base's own matrices, and those of this base are "
            "packed in fewer bits",
            hint="`--set adapter.method=lora` trains beside them",
        )


@torch.no_grad()
def _reset_top(model: Any, count: int) -> None:
    """Give the top blocks the random numbers that a model of this family begins with.

    What a model read from files carries a mark that keeps transformers from drawing anew. A family
    that draws no start for some parameter would keep it, so each is spoiled first, and looked at.
    """
    for block in list_blocks(model)[-count:]:
        for parameter in block.parameters():
            vars(parameter).pop(LOADED, None)
            parameter.fill_(torch.nan)
        for module in reversed(list(block.modules())):  # a family may treat what is inside anew
            model._init_weights(module)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not bool(parameter.isfinite().all()):
            raise RecipeError(
                f"adapter.reset: a {model.config.model_type} base knows no start for `{name}`",
                hint="`--set adapter.reset=0` trains the blocks from what they are",
            )


def keep_before(model: Any, names: Iterable[str]) -> None:
    """Remember these parameters as they are now, as what `putting_back` puts back."""
    wanted = set(names)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if n in wanted}
    setattr(model, BEFORE, before | getattr(model, BEFORE, {}))  # the earliest is the base's


@contextmanager
def putting_back(model: Any) -> Iterator[None]:
    """Inside, parameters that trained have the numbers that they had before, to the last bit."""
    before: dict[str, Tensor] = getattr(model, BEFORE, {})
    own = {name: p for name, p in model.named_parameters() if name in before}
    trained = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():  # data alone is swapped: what holds it finds it again
            parameter.data = before[name].to(parameter.device, parameter.dtype)
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = trained[name]


def forget_before(model: Any) -> None:
    """Take what was loaded in place for the base: `putting_back` goes no further back than now."""
    vars(model).pop(BEFORE, None)


def _choose_biases(model: Any, _: Any) -> list[Tensor]:
    biases = [p for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] == "bias"]
    if not biases:
        raise RecipeError(
            f"adapter.method: bitfit trains biases, and a {model.config.model_type} base has none",
            hint="`--set adapter.method=layernorm` or `ia3` train about as few parameters",
        )
    return biases


def _choose_norms(model: Any, _: Any) -> list[Tensor]:
    norms = [p for module in model.modules() if is_norm(module) for p in module.parameters()]
    if not norms:
        raise RecipeError(
            f"adapter.method: layernorm finds no norm in a {model.config.model_type} base",
            hint="`--set adapter.method=lora` fits every base",
        )
    return norms


def _choose_top(model: Any, section: TopSection) -> list[Tensor]:
    count = count_blocks(model)
    if section.blocks > count:
        raise RecipeError(
            f"adapter.blocks: the base has {count} blocks, not {section.blocks}",
            hint=f"`--set adapter.blocks={count}` or less",
        )
    norm = final_norm(model)
    modules = list_blocks(model)[-section.blocks :] + ([] if norm is None else [norm])
    return [parameter for module in modules for parameter in module.parameters()]


def _choose_all(model: Any, _: Any) -> list[Tensor]:
    return list(model.parameters())


CHOICES: dict[str, Callable[[Any, Any], list[Tensor]]] = {
    "bitfit": _choose_biases,
    "layernorm": _choose_norms,
    "head": choose_head_parameters,
    "top": _choose_top,
    "full": _choose_all,
}
"""The parameters that each method trains."""
