"""Root-mean-square norms with a frozen weight that keep their input, and not its float32 copy.

Families write this norm out in single steps, and autograd keeps the float32 copy that the steps
share. Here the backward pass makes that copy again from the input. Each norm is tried on random
numbers first: only one whose output is equal to the last bit is taken over.
"""

from __future__ import annotations

from functools import partial
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
    return getattr(vars(norm).get("forward"), "func", None) is _forward


def _take_over(norm: Any) -> bool:
    eps: Any = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    known = isinstance(eps, float) and isinstance(norm.weight, torch.Tensor)
    if not known or norm.weight.requires_grad or norm.weight.ndim != 1 or norm.weight.is_meta:
        return False
    if _is_ours(norm):
        return True
    if "forward" in vars(norm):
        return False
    for shifted in (False, True):
        if _gives_the_same(norm, eps, shifted=shifted):
            norm.forward = partial(_forward, norm, type(norm).forward, eps, shifted)
            return True
    return False


@torch.no_grad()
def _gives_the_same(norm: Any, eps: float, *, shifted: bool) -> bool:
    weight = norm.weight
    draw = torch.Generator().manual_seed(0)
    tried = torch.randn(TRIED_ROWS, len(weight), generator=draw).to(weight.device, weight.dtype)
    wanted = norm(tried)
    found, _ = _compute(tried, weight, eps, shifted=shifted)
    return bool(wanted.dtype == found.dtype and torch.equal(wanted, found))


def _forward(norm: Any, plain: Any, eps: float, shifted: bool, x: Tensor, *more: Any) -> Tensor:  # noqa: FBT001 - bound once
    trains = norm.training and torch.is_grad_enabled() and x.requires_grad
    if more or not trains or x.dtype != norm.weight.dtype:
        given: Tensor = plain(norm, x, *more)
        return given
    made: Tensor = RootMeanSquareNorm.apply(x, norm.weight, eps, shifted)  # type: ignore[no-untyped-call]
    return made


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
