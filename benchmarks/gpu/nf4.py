"""A base whose blocks are kept in four bits (NF4), where bitsandbytes is there to do it."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from peftkit.base.targets import linear_layers


def refuse_nf4() -> str | None:
    """Why there is no such arm, if so."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed here"
    return None


def quantize(model: Any) -> None:
    """Put four-bit layers in place of the linear ones, in the tree of this model alone."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, layer in linear_layers(model).items():
        packed = Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16
        )
        weight = Params4bit(layer.weight.data.clone(), requires_grad=False, quant_type="nf4")
        packed.weight = weight.to(layer.weight.device)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed)
    model.is_loaded_in_4bit = True  # what peft looks at to choose its layer
