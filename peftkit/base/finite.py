"""Find the first tensor that holds a number which is not finite, in one pass over each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it, or None.

    The extremes are read instead of a mask, which would take a byte for each number; a NaN is
    both of them wherever it stands.
    """
    for name, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor.detach()
        low, high = torch.aminmax(wide)
        if not bool(torch.isfinite(low)) or not bool(torch.isfinite(high)):
            return name
    return None
