"""What the LoRA that trains adds to the weights of each layer, as two factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer

from peftkit.adapters.starts import ADAPTER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from torch.nn import Parameter


@dataclass(frozen=True, slots=True, eq=False)
class LayerUpdate:
    """One adapted layer: `scale · up · down` is added to its weight as (out, in)."""

    name: str
    layer: Any

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
        return found

    @property
    def parameters(self) -> Iterator[Parameter]:
        """What trains in it."""
        for small in (self.layer.lora_A[ADAPTER], self.layer.lora_B[ADAPTER]):
            yield from small.parameters()

    def factors(self) -> tuple[Tensor, Tensor]:
        """`down` (rank, in) and `up` (out, rank), a start that is taken out among them."""
        down, up = self.layer.lora_A[ADAPTER].weight, self.layer.lora_B[ADAPTER].weight
        if not hasattr(self.layer, "start_down"):
            return down, up
        start_down, start_up = self.layer.start_down, self.layer.start_up
        return torch.cat([down, start_down]), torch.cat([up, -start_up], dim=1)


def layer_updates(model: Any) -> list[LayerUpdate]:
    """Every layer with a LoRA that trains, in the model's order."""
    return [
        LayerUpdate(name, module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
        and ADAPTER in module.lora_A
        and any(p.requires_grad for p in module.lora_A[ADAPTER].parameters())
    ]
