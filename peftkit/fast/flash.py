"""Attention inside each document of a flat row on a GPU: one kernel, or one call a document.

The kernels know where documents begin and never look across. Each is used only where its package
has it with all that is needed; they compute in half precision only. Not covered by the tests of a
machine without a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from inspect import signature
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from peftkit.fast.documents import Rule

HALF = (torch.bfloat16, torch.float16)
WIDEST = 256
"""Width of a head beyond which no flash kernel goes."""


def suits_kernel(query: Tensor, value: Tensor, rule: Rule) -> bool:
    """Whether a kernel is there and takes these heads."""
    width = query.shape[-1]
    plain = rule.softcap is None and width == value.shape[-1] <= WIDEST and width % 8 == 0
    return plain and query.is_cuda and query.dtype in HALF and find_kernel() is not None


def attend_at_once(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], rule: Rule
) -> Tensor:
    """What `documents.attend` gives, by a kernel for documents of different lengths."""
    kernel = find_kernel()
    assert kernel is not None  # noqa: S101 - `suits_kernel` has said so
    rows = [each[0].transpose(0, 1) for each in (query, key, value)]
    window = (-1 if rule.window is None else rule.window - 1, 0)
    bounds = find_bounds(tuple(lengths), query.device)
    return kernel(*rows, bounds, max(lengths), rule.scale, window)[None]


def attend_in_turn(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], rule: Rule
) -> Tensor:
    """The same by a call a document, where no rule of the layer hides or bends anything."""
    split = (each.split(list(lengths), dim=2) for each in (query, key, value))
    made = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=rule.scale, enable_gqa=True)
        for q, k, v in zip(*split, strict=True)
    ]
    return torch.cat(made, dim=2).transpose(1, 2).contiguous()


@lru_cache(maxsize=4)  # the layers of a batch ask for the same one
def find_bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each document begins, and where the last one ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


@lru_cache(maxsize=1)
def find_kernel() -> Callable[..., Tensor] | None:
    """The kernel of torch, else that of the flash-attn package, else none."""
    return _find_in_torch() or _find_in_package()


def _find_in_torch() -> Callable[..., Tensor] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known: Any = varlen_attn
    settings = signature(known).parameters.keys()
    if not {"scale", "window_size"} <= settings:
        return None
    grouped = {"enable_gqa": True} if "enable_gqa" in settings else {}

    def run(*given: Any) -> Tensor:
        query, key, value, bounds, longest, scale, window = given
        if not grouped and key.shape[1] != query.shape[1]:  # older torch: a key head a query head
            group = query.shape[1] // key.shape[1]
            key, value = (each.repeat_interleave(group, dim=1) for each in (key, value))
        lengths = (bounds, bounds, longest, longest)
        made: Tensor = known(
            query, key, value, *lengths, scale=scale, window_size=window, **grouped
        )
        return made

    return run


def _find_in_package() -> Callable[..., Tensor] | None:
    try:
        package = import_module("flash_attn")
    except ImportError:
        return None

    def run(*given: Any) -> Tensor:
        *rows, bounds, longest, scale, window = given
        lengths = (bounds, bounds, longest, longest)
        made: Tensor = package.flash_attn_varlen_func(
            *rows, *lengths, softmax_scale=scale, causal=True, window_size=window
        )
        return made

    return run
