"""The two models that are timed: their shapes, weights made up from a seed, and adapters."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHT_SEED = 0
RANK = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    @property
    def config(self) -> LlamaConfig:
        """The same sizes as transformers reads them."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )


SHAPES = {
    "S": Shape(8, 256, 4, 2, 704, 8192),
    "M": Shape(30, 576, 9, 3, 1536, 49152),  # SmolLM2-135M
}


class Bases:
    """Frozen models of one shape, each its own module tree over weights that all of them share.

    The weights are rounded to bfloat16 in both dtypes, so every arm has the same model.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._weights: dict[torch.dtype, dict[str, torch.Tensor]] = {}

    def make(self, dtype: torch.dtype) -> Any:
        """A new model with the shared weights in `dtype`."""
        with torch.random.fork_rng():
            torch.manual_seed(WEIGHT_SEED)
            model = AutoModelForCausalLM.from_config(self.shape.config, dtype=torch.bfloat16)
        model.to(dtype)
        own = {name: parameter.data for name, parameter in model.named_parameters()}
        shared = self._weights.setdefault(dtype, own)
        for name, parameter in model.named_parameters():
            parameter.data = shared[name]
        return model.requires_grad_(requires_grad=False)


def fill_adapter(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Give adapter weights values as after some training, the same wherever a name is the same.

    A fresh LoRA has B = 0, where the gradient of A vanishes and would be compared with nothing.
    """
    for name, parameter in parameters.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
        scale = 0.1 if "lora_B" in name else 1.0
        with torch.no_grad():
            parameter.copy_(scale * values)
