"""The head of a task: the family's own, or two layers with dropout in its place."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft import set_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import nn

from peftkit.base.tasks import new_parts
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from peftkit.recipe.sections.adapter import HeadSection

HEAD = "_peftkit_head"
"""The attribute of a model that says which head took the place of its own."""


def choose_head_parameters(model: Any, section: HeadSection) -> list[Tensor]:
    """The parameters of the head, which alone train; the layers below only give features.

    Raises:
        RecipeError: the model has no head of its own.
    """
    if section.hidden:
        put_on_head(model, section.hidden, section.dropout)
    if heads := [model.get_submodule(name) for name in new_parts(model)]:
        return [parameter for head in heads for parameter in head.parameters()]
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        raise RecipeError(
            "adapter.method: head finds no head on this base, which gives vectors",
            hint="`--set adapter.method=lora` fits every base",
        )
    if head.weight is embeddings.weight:
        raise RecipeError(
            "adapter.method: the head of this base is tied to its embeddings, and would train them",
            hint="`--set adapter.method=top --set adapter.blocks=1` trains the last block instead",
        )
    return list(head.parameters())


def put_on_head(model: Any, hidden: int, dropout: float) -> None:
    """Replace the last layer of the head by two, with something between them.

    Raises:
        RecipeError: the task of the model needs no new head.
    """
    names = [
        f"{name}.{inner}".rstrip(".")
        for name in new_parts(model)
        if not name.startswith(f"{model.base_model_prefix}.")  # a pooler goes on feeding it
        for inner, module in model.get_submodule(name).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not names or model.get_output_embeddings() is not None:
        raise RecipeError(
            "adapter.hidden: only a task with labels or numbers has a head that can be replaced",
            hint="`--set adapter.hidden=0` trains the head that is there",
        )
    own = model.get_submodule(names[-1])
    layers = nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(own.in_features, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, own.out_features, bias=own.bias is not None),
    ).to(own.weight.device, own.weight.dtype)
    model.set_submodule(names[-1], layers)
    setattr(model, HEAD, {"hidden": hidden, "dropout": dropout})


def widen_heads(adapted: Any) -> bool:
    """Let the new head of a base in 16 bits train in 32, as adapters do, with casts around it.

    In 16 bits most of its updates would be rounded away. What comes out has the base's format, so
    what stands above, or another head, takes it as before. Says whether there was one.
    """
    wrappers = (m for m in adapted.modules() if isinstance(m, ModulesToSaveWrapper))
    heads = [head for wrapper in wrappers for head in wrapper.modules_to_save.values()]
    narrow = {head: dtype for head in heads if (dtype := _narrow_format(head)) is not None}
    for head, dtype in narrow.items():  # all are known by now: two may share one matrix
        head.float()
        head.register_forward_pre_hook(partial(_cast_inputs, torch.float32))
        head.register_forward_hook(partial(_cast_output, dtype))
    return bool(narrow)


def _narrow_format(module: Any) -> torch.dtype | None:
    """The 16-bit format that a parameter of a module has, where one does."""
    formats = (parameter.dtype for parameter in module.parameters())
    return next((f for f in formats if f in (torch.bfloat16, torch.float16)), None)


def read_heads(adapted: Any, weights: Path, name: str) -> None:
    """Give heads that were loaded into 16 bits the digits that the file has."""
    if widen_heads(adapted):
        set_peft_model_state_dict(adapted, load_file(weights), adapter_name=name)


def _cast_inputs(dtype: torch.dtype, _: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(  # an embedding is given numbers of tokens, which stay what they are
        each.to(dtype) if torch.is_tensor(each) and each.is_floating_point() else each
        for each in inputs
    )


def _cast_output(dtype: torch.dtype, _: Any, __: Any, output: Any) -> Any:
    return output.to(dtype) if torch.is_tensor(output) else output


def head_of(model: Any) -> dict[str, Any] | None:
    """What `put_on_head` put there; None for the family's own."""
    found: dict[str, Any] | None = getattr(model, HEAD, None)
    return found
