"""The two random bases, made on the device itself: 8 billion weights take a CPU minutes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from flops import measure_sizes
from shapes import WEIGHT_SEED, Shape
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from flops import Sizes


@dataclass(frozen=True, slots=True)
class Known:
    """A shape, and whether its head is its embedding."""

    shape: Shape
    tied: bool


SHAPES = {
    "8B": Known(Shape(32, 4096, 32, 8, 14336, 128256), tied=False),  # Llama-3-8B
    "1B": Known(Shape(16, 2048, 32, 8, 8192, 128256), tied=True),  # Llama-3.2-1B
    "tiny": Known(Shape(2, 64, 4, 2, 128, 512), tied=True),  # for --smoke alone
}


class Frozen:
    """A bfloat16 base; every arm has a module tree of its own over the same weights."""

    def __init__(self, known: Known, device: torch.device) -> None:
        self.shape, self.device = known.shape, device
        config = known.shape.config
        config.tie_word_embeddings = known.tied
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(WEIGHT_SEED)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        self._model: Any = model.requires_grad_(requires_grad=False)

    @property
    def sizes(self) -> Sizes:
        """What operations are counted by."""
        return measure_sizes(self)  # type: ignore[arg-type]  # it asks for `shape` and `make`

    def make(self, dtype: torch.dtype) -> Any:
        """Another tree: over the shared weights in bfloat16, over a copy of them otherwise."""
        return deepcopy(self._model, {id(p): _as(p, dtype) for p in self._model.parameters()})


def _as(weight: torch.nn.Parameter, dtype: torch.dtype) -> torch.nn.Parameter:
    if weight.dtype == dtype:
        return weight
    return torch.nn.Parameter(weight.data.to(dtype), requires_grad=False)
