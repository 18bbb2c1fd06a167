"""How the weights of a base's modules lie, from its shape alone."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torch.nn import Embedding, Linear
from transformers.pytorch_utils import Conv1D

from peftkit.base.load import shape_of
from peftkit.errors import InputError
from peftkit.recipe.sections.base import BaseSection

if TYPE_CHECKING:
    from peftkit.base.locate import Origin
    from peftkit.recipe.sections.base import Task

TASKS: tuple[Task, ...] = ("causal-lm", "masked-lm", "seq2seq")
"""What families of bases were trained to do, at least one of them."""


def layer_kinds(origin: Origin) -> dict[str, str]:
    """How each module's weight lies: `linear`, `conv1d` or `embedding`.

    It is `tied` where another module has the same weight: a change of it is none of one module.
    """
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


def _skeleton(origin: Origin) -> Any:
    """The model without memory for its weights, with the head that its family was trained with."""
    for task in TASKS[:-1]:
        with suppress(InputError):
            return shape_of(BaseSection(model=str(origin.folder), task=task), origin)
    return shape_of(BaseSection(model=str(origin.folder), task=TASKS[-1]), origin)
