"""What the LoRA that trains adds to the weights of each layer, as two factors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer

from peftkit.adapters.in_place import BEFORE
from peftkit.adapters.starts import ADAPTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from torch.nn import Parameter


@dataclass(frozen=True, slots=True, eq=False)
class LayerUpdate:
    """One adapted layer: `scale · up · down` is added to its weight as (out, in).

    Of an adapter that goes on training that is what it added since.
    """

    name: str
    layer: Any
    before: Mapping[str, Tensor] = field(default_factory=dict)
    """What trains in it as it was when it went on, by its name in the model."""

    @property
    def base(self) -> Any:
        """The frozen layer inside."""
        return self.layer.get_base_layer()

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by, and the bias beside it."""
        return float(self.layer.scaling[ADAPTER])

    @property
    def bias(self) -> Tensor | None:
        """What is added to the output besides, before the scale."""
        found: Tensor | None = self.layer.lora_B[ADAPTER].bias
        old = self._old("lora_B", "bias")
        return found if found is None or old is None else found - old

    @property
    def parameters(self) -> Iterator[Parameter]:
        """What trains in it."""
        for small in (self.layer.lora_A[ADAPTER], self.layer.lora_B[ADAPTER]):
            yield from small.parameters()

    def factors(self) -> tuple[Tensor, Tensor]:
        """`down` (rank, in) and `up` (out, rank), a start that is taken out among them."""
        down, up = self.layer.lora_A[ADAPTER].weight, self.layer.lora_B[ADAPTER].weight
        start_down, start_up = self._old("lora_A", "weight"), self._old("lora_B", "weight")
        if hasattr(self.layer, "start_down"):
            start_down, start_up = self.layer.start_down, self.layer.start_up
        if start_down is None or start_up is None:
            return down, up
        return torch.cat([down, start_down]), torch.cat([up, -start_up], dim=1)

    def _old(self, factor: str, kind: str) -> Tensor | None:
        found = self.before.get(f"{self.name}.{factor}.{ADAPTER}.{kind}")
        return None if found is None else found.to(self.layer.lora_A[ADAPTER].weight)


def layer_updates(model: Any) -> list[LayerUpdate]:
    """Every layer with a LoRA that trains, in the model's order."""
    before = getattr(model, BEFORE, {})
    return [
        LayerUpdate(name, module, before)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        and ADAPTER in module.lora_A
        and any(p.requires_grad for p in module.lora_A[ADAPTER].parameters())
    ]
