"""Merges that need inner products alone: from a Gram matrix to what each change is multiplied by.

The result is a weighted sum, so it is as exact as sums are, and stays an adapter. What is on the
sphere are the changes, not the weights: two fine-tunes of one base are almost parallel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from peftkit.errors import InputError
from peftkit.merge.methods.parameters import NoParameters, Parameters, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from peftkit.merge.methods.core import Pair
    from peftkit.merge.methods.stream import Layer, Stream

_PARALLEL = 1e-7
"""Angles below it are none: the arc is a straight line to more digits than float64 has."""


@dataclass(frozen=True, slots=True)
class Karcher(Parameters):
    """When the mean on the sphere is found."""

    iterations: int = number(100, least=1)
    tolerance: float = number(1e-8, above=0)


def gram_of_factors(pairs: Sequence[Pair]) -> Tensor:
    """Inner products of changes from their factors, in float64."""
    products = [
        [float(((up.T @ other).double() * (down @ another.T)).sum()) for other, another in pairs]
        for up, down in pairs
    ]
    return torch.tensor(products, dtype=torch.float64)


def gram_of_layer(stream: Stream, layer: Layer) -> Tensor:
    """Inner products of what the inputs change of a layer, in float64 and in the order of sums."""
    count = len(stream.inputs)
    total = torch.zeros(count, count, dtype=torch.float64)
    for start, stop in stream.spans(layer):
        blocks = [stream.block(layer, each, start, stop).flatten() for each in range(count)]
        rows = torch.stack(blocks).double()
        total += rows @ rows.T
    return total


def slerp(gram: Tensor, weights: Sequence[float], _: NoParameters) -> tuple[float, ...]:
    """Two changes on the arc between them, at the second one's share of the weights.

    Raises:
        InputError: they point in opposite directions, between which there is no shortest arc.
    """
    share = weights[1] / math.fsum(weights)
    norms = gram.diagonal().clamp(min=0).sqrt()
    if not float(norms.prod()):
        return 1 - share, share
    angle = math.acos(max(-1.0, min(1.0, float(gram[0, 1] / norms.prod()))))
    if angle < _PARALLEL:
        return 1 - share, share
    if math.pi - angle < _PARALLEL:
        raise InputError("two changes point in opposite directions: there is no shortest arc")
    return tuple(math.sin(each * angle) / math.sin(angle) for each in (1 - share, share))


def karcher(gram: Tensor, weights: Sequence[float], limits: Karcher) -> tuple[float, ...]:
    """The mean of the directions on the sphere, as long as the changes are in the mean.

    A change that is nothing has no direction, and shortens the mean.

    Raises:
        InputError: the directions cancel: there is no one mean.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    shares = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)
    length = float((shares * norms).sum())
    there = norms > 0
    if not there.any():
        return (0.0,) * len(norms)
    inverse = torch.where(there, 1 / norms, 0.0)
    cosines = gram * inverse[:, None] * inverse
    mean = _unit(torch.where(there, shares, 0.0), cosines)
    for _ in range(limits.iterations):
        step = _toward(mean, shares * there, cosines)
        size = _norm(step, cosines)
        if size < limits.tolerance:
            break
        mean = _unit(math.cos(size) * mean + math.sin(size) / size * step, cosines)
    return tuple((length * mean * inverse).tolist())


def model_stock(gram: Tensor, weights: Sequence[float], _: NoParameters) -> tuple[float, ...]:
    """The mean of the changes, shortened by how little they agree: nothing where they do not."""
    count, norms = len(weights), gram.diagonal().clamp(min=0).sqrt()
    products = norms[:, None] * norms
    cosines = torch.where(products > 0, gram / products, 0.0)
    pairs = torch.ones_like(cosines).triu(1).bool()
    alike = min(max(float(cosines[pairs].mean()), 0.0), 1.0)
    ratio = count * alike / (1 + (count - 1) * alike)
    return (ratio / count,) * count


def _toward(mean: Tensor, shares: Tensor, cosines: Tensor) -> Tensor:
    """The mean direction from a point of the sphere to all others, as their multiples."""
    dots = (cosines @ mean).clamp(-1, 1)
    angles = dots.acos()
    stretch = torch.where(angles > _PARALLEL, angles / angles.sin().clamp(min=_PARALLEL), 1.0)
    pulls = shares * stretch / shares.sum()
    return pulls - (pulls * dots).sum() * mean


def _norm(multiples: Tensor, cosines: Tensor) -> float:
    return math.sqrt(max(float(multiples @ cosines @ multiples), 0.0))


def _unit(multiples: Tensor, cosines: Tensor) -> Tensor:
    size = _norm(multiples, cosines)
    if size < _PARALLEL:
        raise InputError("the changes point in opposite directions: they have no one mean")
    return multiples / size
