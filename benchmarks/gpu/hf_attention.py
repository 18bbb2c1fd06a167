"""Attention within documents for the plain arm: what is there to ask of transformers and torch.

The flash-attn package where it is installed. Else torch's kernel for documents of different
lengths, put where transformers looks for attention; without that kernel, or on a CPU, a call a
document. It shares no code with this package's own attention, so neither can flatter the other.
"""

from __future__ import annotations

import importlib.util
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

NAME = "documents_of_torch"


def choose_attention(device: torch.device) -> tuple[str, str]:
    """The name that transformers knows it by, and what it is."""
    if device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        return "flash_attention_2", "the flash-attn package"
    kernel = _find_kernel() if device.type == "cuda" else None
    AttentionInterface.register(NAME, _attend_by_call if kernel is None else _attend_by(kernel))
    return NAME, "one call a document" if kernel is None else "torch.nn.attention.varlen"


def _find_kernel() -> Callable[..., Tensor] | None:
    """Torch's kernel, causal, whatever this version calls that."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known: Any = varlen_attn
    says = signature(known).parameters
    causal = {"is_causal": True} if "is_causal" in says else {"window_size": (-1, 0)}

    def run(*given: Any) -> Tensor:
        made: Tensor = known(*given, **causal)
        return made

    return run


def _attend_by(kernel: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any
    ) -> tuple[Tensor, None]:
        del mask
        times = module.num_key_value_groups
        rows = [query, *(each.repeat_interleave(times, dim=1) for each in (key, value))]
        rows = [each[0].transpose(0, 1).contiguous() for each in rows]
        bounds, longest = settings["cu_seq_lens_q"], settings["max_length_q"]
        return kernel(*rows, bounds, bounds, longest, longest)[None], None

    return attend


def _attend_by_call(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any
) -> tuple[Tensor, None]:
    del module, mask
    lengths = settings["cu_seq_lens_q"].diff().tolist()
    split = (each.split(lengths, dim=2) for each in (query, key, value))
    made = [
        scaled_dot_product_attention(*each, is_causal=True, enable_gqa=True)
        for each in zip(*split, strict=True)
    ]
    return torch.cat(made, dim=2).transpose(1, 2).contiguous(), None
