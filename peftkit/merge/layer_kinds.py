"""How the weights of a base's modules lie, from its shape alone."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torch.nn import Embedding, Linear

from peftkit.errors import InputError
from peftkit.merge.base_weights import nearest
from peftkit.recipe.sections.base import BaseSection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from peftkit.base.locate import Origin
    from peftkit.recipe.sections.base import Task

TASKS: tuple[Task, ...] = ("causal-lm", "masked-lm", "seq2seq")
"""What families of bases were trained to do, at least one of them."""


def layer_kinds(origin: Origin) -> dict[str, str]:
    """How each module's weight lies: `linear`, `conv1d` or `embedding`.

    It is `tied` where another module has the same weight: a change of it is none of one module.
    """
    from transformers.pytorch_utils import Conv1D  # most merges ask for no base, and do without

    model = _skeleton(origin)
    kinds = ((Linear, "linear"), (Conv1D, "conv1d"), (Embedding, "embedding"))
    found = {
        name: kind
        for name, module in model.named_modules()
        for cls, kind in kinds
        if isinstance(module, cls)
    }
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return found | {name: "tied" for names in users.values() if len(names) > 1 for name in names}


def name_as_loaded(tensors: Iterable[str], layers: Mapping[str, str]) -> dict[str, str]:
    """By tensor of a file what the loaded model calls it: some files lack the first part of names.

    An adapter with names as the file has them would load into nothing.
    """
    owners = {name: name.rpartition(".")[0] for name in tensors}
    known = {owner: nearest(owner, layers) for owner in owners.values()}
    longer = (near.removesuffix(owner) for owner, near in known.items() if near and near != owner)
    first = next(longer, "")
    return {
        name: name if owner in layers or name.startswith(first) else f"{first}{name}"
        for name, owner in owners.items()
    }


def _skeleton(origin: Origin) -> Any:
    """The model without memory for its weights, with the head that its family was trained with."""
    from peftkit.base.load import shape_of  # imports transformers

    for task in TASKS[:-1]:
        with suppress(InputError):
            return shape_of(BaseSection(model=str(origin.folder), task=task), origin)
    return shape_of(BaseSection(model=str(origin.folder), task=TASKS[-1]), origin)
