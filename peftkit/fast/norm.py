"""Root-mean-square norms with a frozen weight that keep their input, and not its float32 copy.

Families write this norm out in single steps, and autograd keeps the float32 copy that the steps
share. Here the backward pass makes that copy again from the input. Each norm is tried on random
numbers first: only one whose output is equal to the last bit is taken over.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import Function, once_differentiable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

TRIED_ROWS = 8


def enable(model: Any) -> tuple[int, str]:
    """Let every norm that is one of these train this way; how many do, and why not the rest."""
    norms = list(_norms(model))
    taken = [norm for norm in norms if _take_over(norm)]
    if not norms:
        return 0, "there is no norm of this kind"
    if not taken:
        return 0, "its norms compute something else, or train"
    return len(taken), f"{len(taken)} of {len(norms)} norms give the same bits"


def is_on(model: Any) -> bool:
    """Whether any norm trains this way."""
    return any(_is_ours(norm) for norm in _norms(model))


def _norms(model: Any) -> Iterator[Any]:
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "weight"):
            yield module


def _is_ours(norm: Any) -> bool:
    return isinstance(norm, _KeepsLess)


def _take_over(norm: Any) -> bool:
    weight: Any = norm.weight
    known = isinstance(weight, torch.Tensor) and isinstance(_eps_of(norm), float)
    if not known or weight.requires_grad or weight.ndim != 1 or weight.is_meta:
        return False
    if _is_ours(norm):
        return True
    if "forward" in vars(norm):
        return False
    for shifted in (False, True):
        if _gives_the_same(norm, shifted=shifted):
            family: Any = type(norm)
            norm.__class__ = _kind_of(family, shifted)
            return True
    return False


def _eps_of(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


class _KeepsLess:
    """Put before a family's norm: that norm, except while it trains."""

    weight: Tensor
    training: bool
    shifted: bool

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """The norm of each row."""
        trains = self.training and torch.is_grad_enabled() and x.requires_grad
        if more or not trains or x.dtype != self.weight.dtype:
            given: Tensor = super().forward(x, *more)  # type: ignore[misc]
            return given
        made: Tensor = RootMeanSquareNorm.apply(  # type: ignore[no-untyped-call]
            x, self.weight, _eps_of(self), self.shifted
        )
        return made


@lru_cache(maxsize=16)
def _kind_of(family: type, shifted: bool) -> type:  # noqa: FBT001 - a key
    """One class for all norms of a family, so that what is compiled is shared by its blocks."""
    return type(family.__name__, (_KeepsLess, family), {"shifted": shifted})


@torch.no_grad()
def _gives_the_same(norm: Any, *, shifted: bool) -> bool:
    weight = norm.weight
    draw = torch.Generator().manual_seed(0)
    tried = torch.randn(TRIED_ROWS, len(weight), generator=draw).to(weight.device, weight.dtype)
    wanted = norm(tried)
    found, _ = _compute(tried, weight, _eps_of(norm), shifted=shifted)
    return bool(wanted.dtype == found.dtype and torch.equal(wanted, found))


def _compute(x: Tensor, weight: Tensor, eps: float, *, shifted: bool) -> tuple[Tensor, Tensor]:
    """The norm of each row, and one over its size: as Llama has it, or shifted, as Gemma."""
    wide = x.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if shifted:
        return (wide * inverse * (1.0 + weight.float())).to(x.dtype), inverse
    return weight * (wide * inverse).to(x.dtype), inverse


class RootMeanSquareNorm(Function):
    """`x / sqrt(mean(x²) + eps) * weight`, or `* (1 + weight)` where it is shifted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, shifted: bool) -> Tensor:  # noqa: FBT001 - autograd takes positions
        """See above."""
        result, inverse = _compute(x, weight, eps, shifted=shifted)
        ctx.save_for_backward(x, inverse, weight)
        ctx.shifted = shifted
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of x; the weight is frozen."""
        x, inverse, weight = ctx.saved_tensors
        factor = 1.0 + weight.float() if ctx.shifted else weight
        slopes = (above * factor).float()
        whole = x.float().mul_(inverse)
        share = (slopes * whole).mean(-1, keepdim=True)
        return slopes.sub_(whole.mul_(share)).mul_(inverse).to(x.dtype), None, None, None
