"""The small space that holds several low-rank changes of a weight, and back from there.

Its axes are the left singular vectors of the changes side by side and the right ones of the changes
on top of each other. The Core Space paper takes those of the factors instead, which makes whatever
looks at coordinates depend on how a change happens to be written: (B G, G^-1 A) is the same change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

Pair = tuple[Tensor, Tensor]
"""A change as (out, rank) and (rank, in), whose product it is: every scale is in it."""
_ROUNDING = 1e-13
"""Of what factors could reach if nothing canceled, the share that rounding makes of nothing."""


@dataclass(frozen=True, slots=True)
class Space:
    """Changes as small matrices between shared axes, without any loss."""

    left: Tensor
    """(out, p), with orthonormal columns."""
    right: Tensor
    """(q, in), with orthonormal rows."""
    cores: tuple[Tensor, ...]
    """(p, q) each."""
    floor: float
    """Singular values below it are rounding of what the factors could reach."""
    gap: float
    """The smallest distance of two neighboring singular values, by the larger of them.

    Near 0 the axes could be others, and with them what a method that looks at coordinates does.
    """


def shared(pairs: Sequence[Pair], name: str) -> Space:
    """The space of some changes of one weight.

    Raises:
        InputError: they are of different sizes, or hold what is no number.
    """
    _check(pairs, name)
    ups = [up.double() for up, _ in pairs]
    downs = [down.double() for _, down in pairs]
    left, upper = torch.linalg.qr(torch.cat(ups, 1))
    right, lower = torch.linalg.qr(torch.cat(downs, 0).T)
    ranks = [up.shape[1] for up in ups]
    cores = [
        one @ other.T
        for one, other in zip(upper.split(ranks, 1), lower.split(ranks, 1), strict=True)
    ]
    reach = sum(float(up.norm() * down.norm()) for up, down in zip(ups, downs, strict=True))
    floor = _ROUNDING * reach
    columns, gap_left = _axes(left, torch.cat(cores, 1), floor)
    rows, gap_right = _axes(right, torch.cat(cores, 0).T, floor)
    inner = tuple((left.T @ columns).T @ core @ (right.T @ rows) for core in cores)
    return Space(columns, rows.T, inner, floor, min(gap_left, gap_right))


def expand(space: Space, core: Tensor) -> Pair:
    """A matrix between the axes as factors of its rank, both of like size.

    A matrix of no rank gives factors with no column.
    """
    left, values, right = decompose(core, space.floor)
    root = values.sqrt()
    return space.left @ (left * root), (root[:, None] * right) @ space.right


def decompose(core: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The singular values above a floor and their vectors, with canonical signs."""
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    kept = int((values > floor).sum())
    signs = _signs(left[:, :kept])
    return left[:, :kept] * signs, values[:kept], right[:kept] * signs[:, None]


def _axes(basis: Tensor, matrix: Tensor, floor: float) -> tuple[Tensor, float]:
    """The left singular vectors of `basis @ matrix`, and how well they are told apart."""
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    values = values[: int((values > floor).sum())]
    axes = basis @ left[:, : len(values)]
    gaps = (values[:-1] - values[1:]) / values[:-1]
    return axes * _signs(axes), float(gaps.min()) if len(gaps) else 1.0


def _signs(vectors: Tensor) -> Tensor:
    """What makes the largest entry of each column positive."""
    if not vectors.numel():
        return vectors.new_ones(vectors.shape[1])
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors.gather(0, largest)[0].sign()


def _check(pairs: Sequence[Pair], name: str) -> None:
    sizes = [(up.shape[0], down.shape[1]) for up, down in pairs]
    for (up, down), size in zip(pairs, sizes, strict=True):
        if up.shape[1] != down.shape[0]:
            raise InputError(f"`{name}`: factors of rank {up.shape[1]} and {down.shape[0]}")
        if size != sizes[0]:
            raise InputError(
                f"`{name}` is {sizes[0][0]} x {sizes[0][1]} in one adapter and "
                f"{size[0]} x {size[1]} in another",
                hint="only changes of one base can be merged",
            )
        if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
            raise InputError(f"`{name}` holds NaN or infinity: it cannot be merged")
