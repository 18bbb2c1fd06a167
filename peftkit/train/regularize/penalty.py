"""A penalty in pieces: each piece's gradients are taken before the next piece is formed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


def add_up(pieces: Iterable[Tensor]) -> Tensor:
    """The sum of the pieces, whose gradients are added to those of the parameters one by one.

    A piece of parameters that all stand still for now has none to add, and counts all the same.
    """
    total = torch.zeros(())
    for piece in pieces:
        if piece.requires_grad:
            piece.backward()
        total = total.to(piece.device) + piece.detach()
    return total
