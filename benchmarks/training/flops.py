"""Operations that training needs by its model alone: padding and recomputing never count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from shapes import RANK, Bases

from peftkit.base.targets import linear_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arm import Work

    from peftkit.data.example import Example


@dataclass(frozen=True, slots=True)
class Sizes:
    """Weights that are multiplied with, by what is done with them."""

    blocks: int
    head: int
    adapter: int
    attention: int
    """Width of all heads, summed over the layers."""


def measure_sizes(bases: Bases) -> Sizes:
    """The sizes of a base, and of an adapter on every linear layer of its blocks."""
    shape = bases.shape
    layers = linear_layers(bases.make(torch.bfloat16)).values()
    return Sizes(
        blocks=sum(layer.weight.numel() for layer in layers),
        head=shape.vocabulary * shape.hidden,
        adapter=sum(RANK * sum(layer.weight.shape) for layer in layers),
        attention=shape.layers * shape.hidden,
    )


def count_operations(sizes: Sizes, documents: Sequence[Example], work: Work) -> float:
    """2 a weight forward, 2 for its inputs' gradient, and 2 more where the weight itself trains.

    `forward` and `backward` are the shares of the blocks that are computed and that a gradient
    passes; adapters sit where it passes. Causal attention multiplies half a square a document.
    """
    tokens = sum(document.length for document in documents)
    trained = sum(document.trained_tokens for document in documents)
    squares = sum(document.length**2 for document in documents)
    return (
        2 * sizes.blocks * (work.forward + work.backward) * tokens
        + 4 * sizes.head * trained
        + 6 * sizes.adapter * work.backward * tokens
        + 2 * sizes.attention * (work.forward + 2 * work.backward) * squares
    )
