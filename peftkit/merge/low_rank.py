"""A change of one matrix as two thin factors: summed exactly, reduced exactly, cut with its error.

Factors are in float64: a sum of adapters puts them side by side, and what cancels in it must be
told from what is merely small. A gauge (B G, G^-1 A) is the same change, so nothing here may look
at a factor alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from peftkit.errors import InputError
from peftkit.merge.methods import core

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = 1e-12
"""Singular values below this share of what the factors could reach are rounding."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change `up @ down` of a weight that is seen as (out, in)."""

    up: Tensor
    """(out, rank)"""
    down: Tensor
    """(rank, in)"""
    layer: str = "linear"
    """`linear`, or `conv1d` and `embedding`, whose weights lie the other way round."""

    @property
    def rank(self) -> int:
        """Columns of the factors; an upper bound of the rank of the change."""
        return int(self.down.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return int(self.up.shape[0]), int(self.down.shape[1])

    def dense(self) -> Tensor:
        """The change as the weight itself lies."""
        change = self.up @ self.down
        return change if self.layer == "linear" else change.T


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A change as `left @ diag(values) @ right`, without what is only rounding."""

    left: Tensor
    values: Tensor
    right: Tensor


def scale(change: LowRank, factor: float) -> LowRank:
    """The change times a number."""
    return replace(change, up=change.up * factor)


def join(one: LowRank, other: LowRank, name: str) -> LowRank:
    """The exact sum of two changes of a weight, by factors side by side.

    Raises:
        InputError: they are changes of different matrices.
    """
    if one.shape != other.shape or one.layer != other.layer:
        raise InputError(
            f"`{name}` is {_sized(one)} in one adapter and {_sized(other)} in another",
            hint="only adapters of one base can be added",
        )
    up, down = torch.cat([one.up, other.up], 1), torch.cat([one.down, other.down], 0)
    return LowRank(up, down, one.layer)


def multiply(one: LowRank, other: LowRank) -> float:
    """The sum of the products of all entries of two changes, from their factors."""
    return float(((one.up.T @ other.up) * (one.down @ other.down.T)).sum())


def decompose(change: LowRank) -> Spectrum:
    """The singular values of a change, by way of a core as small as its rank.

    What both factors could reach if nothing canceled says which values are rounding: of `a - a`
    none is left.
    """
    left, upper = torch.linalg.qr(change.up)
    right, lower = torch.linalg.qr(change.down.T)
    limit = NOTHING * float(change.up.norm() * change.down.norm())
    inner_left, values, inner_right = core.decompose(upper @ lower.T, limit)
    return Spectrum(left @ inner_left, values, inner_right @ right.T)


def rebuild(spectrum: Spectrum, rank: int, layer: str) -> LowRank:
    """The best approximation of a rank, both factors of like size."""
    root = spectrum.values[:rank].sqrt()
    return LowRank(spectrum.left[:, :rank] * root, root[:, None] * spectrum.right[:rank], layer)


def rank_for(spectrum: Spectrum, energy: float) -> int:
    """The smallest rank that keeps a share of the squared singular values."""
    squares = spectrum.values.square()
    kept = squares.cumsum(0) / squares.sum() if len(squares) else squares
    return min(int((kept < energy - NOTHING).sum()) + 1, len(squares))


def lost(spectrum: Spectrum, rank: int) -> float:
    """Squared norm of what a cut to a rank takes away."""
    return float(spectrum.values[rank:].square().sum())


def effective_rank(spectrum: Spectrum) -> float:
    """How many directions a change uses alike: the exponent of the entropy of its values."""
    if not len(spectrum.values):
        return 0.0
    shares = spectrum.values / spectrum.values.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def overlap(one: Spectrum, other: Spectrum) -> float:
    """Share of the smaller change's output directions that the other has too, from 0 to 1."""
    fewer = min(len(one.values), len(other.values))
    return float((one.left.T @ other.left).square().sum()) / fewer if fewer else 0.0


def _sized(change: LowRank) -> str:
    return f"{change.shape[0]} x {change.shape[1]} ({change.layer})"
