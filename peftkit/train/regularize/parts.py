"""What training changes: layers with an update, new heads, and what has a start of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftkit.adapters.attach import trainable
from peftkit.adapters.in_place import BEFORE
from peftkit.adapters.updates import LayerUpdate, layer_updates
from peftkit.base.tasks import new_parts
from peftkit.fast.refusals import unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter


@dataclass(frozen=True, slots=True)
class Parts:
    """What trains, told apart by what it is compared with."""

    updates: Sequence[LayerUpdate]
    """Layers whose change is a product of two factors."""
    heads: Mapping[str, Parameter]
    """Of modules that no base brings along: nothing is known of where they should be."""
    others: Mapping[str, Parameter]
    """The base's own parameters, and rows of new tokens."""
    starts: Mapping[str, Tensor] = field(default_factory=dict)
    """What `others` were before anything trained."""


def tell_parts(model: Any) -> Parts:
    """The parts of a model that has not trained yet, or not since it was loaded."""
    updates = layer_updates(model)
    covered = {id(parameter) for update in updates for parameter in update.parameters}
    new = tuple(f"{name}." for name in new_parts(unwrap(model)))
    left = {name: p for name, p in trainable(model).items() if id(p) not in covered}
    heads = {name: p for name, p in left.items() if _is_new(name, new)}
    others = {name: p for name, p in left.items() if name not in heads}
    before: dict[str, Tensor] = getattr(model, BEFORE, {})
    starts = {name: before.get(name, p.detach().clone()) for name, p in others.items()}
    return Parts(updates, heads, others, starts)


def _is_new(name: str, new: tuple[str, ...]) -> bool:
    return ".modules_to_save." in name or name.startswith(new)
