"""Merges of low-rank changes that look at directions: in the core, in float64, none of them dense.

Each is the same for every way to write the changes as factors, for none looks at coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from peftkit.merge.methods.consensus import add, weigh
from peftkit.merge.methods.core import decompose, expand, shared
from peftkit.merge.methods.parameters import NoParameters, Parameters, Scaled, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from peftkit.merge.methods.core import Pair, Space
    from peftkit.merge.methods.inputs import Inputs

    InCore = Callable[[Space, Sequence[float], Any], Tensor]

_UNSEEN = 1e-10
"""Of shares and of singular values of directions: what is below is rounding."""


@dataclass(frozen=True, slots=True)
class Factored:
    """One weight and what each input changes of it, as factors."""

    name: str
    pairs: tuple[Pair, ...]
    """One for each input; an input that leaves the weight alone gives factors of rank 0."""


@dataclass(frozen=True, slots=True)
class Trim(Parameters):
    """How much of each change is left."""

    energy: float = number(0.9, above=0, most=1)
    """Share of the squared singular values that each change keeps, at least."""
    scaling: float = number(1.0)


def linear(space: Space, weights: Sequence[float], _: NoParameters) -> Tensor:
    """The weighted sum."""
    return add(weigh(space.cores, weights))


def svd_trim(space: Space, weights: Sequence[float], told: Trim) -> Tensor:
    """The weighted sum of the strongest directions of each change."""
    trimmed = [_trimmed(core, told.energy, space.floor) for core in space.cores]
    return add(weigh(trimmed, weights)) * told.scaling


def tsv(space: Space, weights: Sequence[float], told: Scaled) -> Tensor:
    """The strongest directions of each change, made orthogonal to those of the others.

    Each keeps its share of the directions that the weight has, which is all of a low-rank change.
    """
    most = max(min(space.left.shape[0], space.right.shape[1]) // len(space.cores), 1)
    parts = [decompose(core, space.floor) for core in space.cores]
    left = torch.cat([left[:, :most] for left, _, _ in parts], 1)
    right = torch.cat([right[:most] for _, _, right in parts], 0)
    values = [values[:most] * weight for (_, values, _), weight in zip(parts, weights, strict=True)]
    return (_orthogonal(left) * torch.cat(values)) @ _orthogonal(right) * told.scaling


def iso_c(space: Space, weights: Sequence[float], told: Scaled) -> Tensor:
    """The weighted sum with all its directions made equally strong."""
    left, values, right = decompose(linear(space, weights, NoParameters()), space.floor)
    if not len(values):
        return torch.zeros_like(space.cores[0])
    return (left @ right) * values.mean() * told.scaling


def wudi(space: Space, _: Sequence[float], told: Scaled) -> Tensor:
    """The change that disturbs each one least on the inputs that it reacts to.

    It minimizes the sum of |(D - D_i) D_i^T|^2 / |D_i|^2, which is a problem of least squares. The
    solution of least norm is the one that descent from the sum of the changes reaches.
    """
    there = [core for core in space.cores if float(core.norm())]
    if not there:
        return torch.zeros_like(space.cores[0])
    inputs = torch.cat([core.T / core.norm() for core in there], 1)
    outputs = torch.cat([core @ core.T / core.norm() for core in there], 1)
    inverse: Tensor = torch.linalg.pinv(inputs, rtol=_UNSEEN)
    return outputs @ inverse * told.scaling


def layer_by_layer(method: InCore) -> Callable[..., Iterator[tuple[str, Pair]]]:
    """A method in the core as one that merges layers, in the order of sums."""

    def merge(layers: Sequence[Factored], inputs: Inputs, told: Any) -> Iterator[tuple[str, Pair]]:
        weights = inputs.sorted().weights
        for layer in layers:
            pairs = inputs.fit(layer.pairs, f"changes of `{layer.name}`")
            space = shared(pairs, layer.name)
            yield layer.name, expand(space, method(space, weights, told))

    return merge


def _trimmed(core: Tensor, energy: float, floor: float) -> Tensor:
    left, values, right = decompose(core, floor)
    squares = values.square()
    kept = int((squares.cumsum(0) < (energy - _UNSEEN) * squares.sum()).sum()) + 1
    return (left[:, :kept] * values[:kept]) @ right[:kept]


def _orthogonal(vectors: Tensor) -> Tensor:
    """The nearest matrix whose singular values are 1, but for those that are 0."""
    left, _, right = decompose(vectors, _UNSEEN)
    return left @ right
