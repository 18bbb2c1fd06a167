"""Which layers an adapter goes on: names and block numbers, checked against the model itself."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BLOCK = re.compile(r"\.(\d+)\.")


def linear_layers(model: Any) -> dict[str, Any]:
    """Name and module of every linear layer inside the blocks, the output head left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and BLOCK.search(name)
    }


def choose_targets(model: Any, wanted: Sequence[str]) -> list[str]:
    """The layer names (`q_proj`, …) that `adapter.targets` means in this model."""
    layers = linear_layers(model)
    leaves = sorted({name.rsplit(".", 1)[-1] for name in layers})
    if tuple(wanted) == ("all-linear",):
        return leaves
    problems = []
    for name in wanted:
        if not any(means(name, full) for full in layers):
            close = get_close_matches(name, leaves, n=1, cutoff=0.5)
            ending = f"did you mean `{close[0]}`?" if close else "no layer is called that"
            problems.append(f"adapter.targets: `{name}` matches nothing; {ending}")
    if problems:
        raise RecipeError(
            "the base has no such layers",
            problems=problems,
            hint=f"this base has: all-linear, {', '.join(leaves)}",
        )
    return sorted(set(wanted))


def means(wanted: str, name: str) -> bool:
    """Whether a target names the layer, by its whole name or by the end of it after a dot."""
    return name == wanted or name.endswith(f".{wanted}")


def count_blocks(model: Any) -> int:
    """How many blocks the model is stacked from."""
    numbers = {int(match[1]) for name in linear_layers(model) if (match := BLOCK.search(name))}
    return max(numbers) + 1 if numbers else 0


def first_block(names: Iterable[str]) -> int:
    """The lowest block that parameters of these names are in; 0 where one is in no block."""
    matches = [BLOCK.search(name) for name in names]
    return min((int(match[1]) if match else 0 for match in matches), default=0)


def list_blocks(model: Any) -> list[Any]:
    """The blocks that the model is stacked from, lowest first."""
    found = {}
    for name in linear_layers(model):
        if match := BLOCK.search(name):
            found[int(match[1])] = name[: match.end() - 1]
    return [model.get_submodule(found[number]) for number in sorted(found)]


def choose_blocks(model: Any, wanted: str | Sequence[int]) -> list[int] | None:
    """The block numbers that `adapter.layers` means; None for all of them."""
    count = count_blocks(model)
    if wanted == "all":
        return None
    if wanted == "upper-half":
        return list(range(count // 2, count))
    numbers = sorted({int(number) for number in wanted})
    if not numbers:  # peft would take an empty list for all of them
        raise RecipeError("adapter.layers: the list is empty", hint="`all` means every block")
    if numbers[-1] >= count:
        raise RecipeError(
            f"adapter.layers: there is no block {numbers[-1]}; "
            f"the base has {count}, counted from 0 to {count - 1}"
        )
    return numbers
