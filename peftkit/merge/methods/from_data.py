"""Merges that need what was measured on data: importances, activations, or scores.

Nothing is collected here. What they are given is checked, for a matrix of the wrong layer merges
without a word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from peftkit.errors import InputError
from peftkit.merge.methods.consensus import add
from peftkit.merge.methods.parameters import Parameters, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from peftkit.merge.methods.core import Pair

_RANK = 1e-10
"""Directions of the inputs below this share of the strongest one were not seen."""


@dataclass(frozen=True, slots=True)
class RegMean(Parameters):
    """How much the activations' correlations count."""

    correlations: float = number(0.9, least=0, most=1)
    """What the entries beside the diagonal are multiplied by; 1 is the exact solution."""


@dataclass(frozen=True, slots=True)
class Soup:
    """Which changes were taken, and how it went."""

    weights: tuple[float, ...]
    score: float
    tried: tuple[tuple[int, float, bool], ...]
    """Place of the change, score of the mean with it, whether it stayed; best first."""


def fisher(
    changes: Sequence[Tensor], importances: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """The mean of the changes, each entry weighed by its importance; a plain one where all are 0.

    Works on whole tensors or on blocks of them.

    Raises:
        InputError: shapes differ, or an importance is negative or no number.
    """
    _same_length(changes, importances, weights)
    for change, importance in zip(changes, importances, strict=True):
        if change.shape != importance.shape:
            raise InputError(
                f"importances of shape {tuple(importance.shape)} for a change of shape "
                f"{tuple(change.shape)}"
            )
        if not bool(torch.isfinite(importance).all() and (importance >= 0).all()):
            raise InputError("importances: expected finite numbers of at least 0")
    shares = [each.double() * weight for each, weight in zip(importances, weights, strict=True)]
    whole = add(shares)
    plain = [torch.full_like(whole, weight / math.fsum(weights)) for weight in weights]
    parts = [
        torch.where(whole > 0, share / whole, even) * change
        for share, even, change in zip(shares, plain, changes, strict=True)
    ]
    return add(parts).to(changes[0].dtype)


def regmean(
    pairs: Sequence[Pair], grams: Sequence[Tensor], weights: Sequence[float], told: RegMean
) -> Pair:
    """The change whose outputs are nearest to those of each one on its own inputs, as factors.

    Args:
        pairs: what each input changes, as factors; (change, identity) for a dense one.
        grams: for each, the sum of x x^T over the inputs of the layer, (in, in).
        weights: how much each task counts.
        told: how much correlations count.

    Raises:
        InputError: a matrix has the wrong size, or is not symmetric.
    """
    _same_length(pairs, grams, weights)
    seen = [
        _shrunk(gram, down.shape[1], told.correlations) * weight
        for (_, down), gram, weight in zip(pairs, grams, weights, strict=True)
    ]
    inverse = torch.linalg.pinv(add(seen), rtol=_RANK, hermitian=True)
    downs = [down.double() @ gram @ inverse for (_, down), gram in zip(pairs, seen, strict=True)]
    return torch.cat([up.double() for up, _ in pairs], 1), torch.cat(downs, 0)


def greedy_soup(count: int, score: Callable[[tuple[float, ...]], float]) -> Soup:
    """The mean of those changes that make it better, or no worse, taken from the best on.

    Args:
        count: how many changes there are.
        score: how good the sum with some weights is on held-out data; more is better.

    Raises:
        InputError: a score is no number.
    """
    alone = [(_scored(score, _even((place,), count)), place) for place in range(count)]
    alone.sort(key=lambda each: -each[0])
    best, first = alone[0]
    taken: tuple[int, ...] = (first,)
    tried = [(first, best, True)]
    for _, candidate in alone[1:]:
        reached = _scored(score, _even((*taken, candidate), count))
        stays = reached >= best
        tried.append((candidate, reached, stays))
        if stays:
            taken, best = (*taken, candidate), reached
    return Soup(_even(taken, count), best, tuple(tried))


def _even(taken: tuple[int, ...], count: int) -> tuple[float, ...]:
    return tuple(1 / len(taken) if place in taken else 0.0 for place in range(count))


def _scored(score: Callable[[tuple[float, ...]], float], weights: tuple[float, ...]) -> float:
    value = float(score(weights))
    if math.isnan(value):
        raise InputError(f"the score of the weights {weights} is NaN")
    return value


def _shrunk(gram: Tensor, size: int, correlations: float) -> Tensor:
    if tuple(gram.shape) != (size, size):
        raise InputError(
            f"activations of shape {tuple(gram.shape)} for a layer with {size} inputs; expected "
            f"{(size, size)}"
        )
    exact = gram.double()
    if not bool(torch.isfinite(exact).all()) or not torch.allclose(exact, exact.T):
        raise InputError("activations: expected a symmetric matrix of finite numbers")
    return exact * correlations + torch.diag(exact.diagonal() * (1 - correlations))


def _same_length(
    changes: Sequence[object], others: Sequence[object], weights: Sequence[float]
) -> None:
    if not len(changes) == len(others) == len(weights):
        raise InputError(
            f"{len(changes)} changes, {len(others)} measurements and {len(weights)} weights: "
            "one of each is expected"
        )
    if not changes:
        raise InputError("nothing to merge: expected at least one change")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise InputError("weights: expected finite numbers of more than 0")
