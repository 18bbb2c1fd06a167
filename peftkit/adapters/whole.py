"""Embeddings and a head that train whole beside an adapter, as peft's `modules_to_save`.

Where a base has one matrix for both, it trains as one. The file then holds it under both names, and
asks for no tying: so any peft loads it, and a base whose two matrices were parted takes it as well.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from peftkit.base.tokens import added_rows
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence


def whole_parts(model: Any, wanted: Sequence[str]) -> list[str]:
    """Names of the modules that `adapter.also` means; of a tied pair the embedding alone.

    Raises:
        RecipeError: the model has no such part, or peft would not keep it what it is.
    """
    if not wanted:
        return []
    _refuse(model, wanted)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    chosen = {"embeddings": embedding, "head": head}
    modules = [embedding] if is_tied(model) else [chosen[name] for name in wanted]
    return [name for name, module in model.named_modules() if any(module is m for m in modules)]


def is_tied(model: Any) -> bool:
    """Whether the head of a base is the matrix of its embeddings."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def as_saved(config: Any) -> Any:
    """The configuration that goes with the file: what was tied while it trained is named twice."""
    tied = sorted(getattr(config, "modules_to_tie", None) or ())
    if not tied:
        return config
    saved = copy(config)
    saved.modules_to_save = [*config.modules_to_save, *tied]
    saved.ensure_weight_tying, saved.modules_to_tie = False, None
    return saved


def _refuse(model: Any, wanted: Sequence[str]) -> None:
    head = model.get_output_embeddings()
    if head is None and "head" in wanted:
        raise RecipeError(
            "adapter.also: this base has no head that it brings along; a task with labels trains "
            "its own anyway",
            hint="`--set adapter.also=[embeddings]`, or leave it out",
        )
    if model.config.is_encoder_decoder:
        raise RecipeError(
            "adapter.also: an encoder and a decoder share their embeddings in more places than "
            "peft can keep alike",
            hint="leave `adapter.also` out, or `--set adapter.method=full`",
        )
    if is_tied(model) and head.bias is not None:
        raise RecipeError(
            "adapter.also: the head of this base is its embeddings and a bias, which peft would "
            "lose",
            hint="leave `adapter.also` out, or `--set adapter.method=full`",
        )
    if added_rows(model):
        raise RecipeError(
            "adapter.also: with `base.add_tokens` the new rows alone train, and peft keeps no "
            "whole matrix beside them",
            hint="leave out one of the two",
        )
