"""Cross entropy of hidden states through a frozen head, without ever holding all the logits.

Rows go through the head in chunks: large enough for the matrix products to run at full speed, small
enough that a chunk's logits are soon overwritten. A frozen head needs no gradient of its own, so
the forward pass can finish with the gradient of the hidden states and forget the logits; what is
kept for the backward pass is of the hidden states' size. Each row's loss depends on its own hidden
state alone, so any upstream gradient, not only a scalar, is a factor for each row.

Softmax runs over a few rows at a time, as many as a core's cache holds and the allocator keeps at
hand: on a CPU three to five times as fast as over the whole chunk, and faster than what
`torch.compile` makes of it, so nothing is compiled here (`benchmarks/head`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import Function, once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

CPU_ROWS, GPU_ROWS = 256, (512, 4096)
"""Rows of a matrix product: fewer waste a CPU's repacking of the weight, or leave a GPU idle."""
GPU_LOGITS = 2**28
"""Logits of a chunk on a GPU, within the bounds above: half a GiB in bfloat16."""
CPU_BLOCK, GPU_BLOCK = 2**19, 2**26
"""Logits that go through softmax together, in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The frozen last step of a causal language model: from a hidden state to its logits."""

    weight: Tensor
    """(vocabulary, width)"""
    bias: Tensor | None = None
    scale: float = 1.0
    """What the logits are multiplied by, before they are capped."""
    softcap: float | None = None
    """The bound that a hyperbolic tangent bends the logits to."""


def project_losses(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Cross entropy of each row of `hidden` (rows, width), in float32, differentiable in it."""
    hidden = hidden.to(head.weight.device, head.weight.dtype)
    targets = targets.to(head.weight.device)
    if torch.is_grad_enabled() and hidden.requires_grad:
        losses: Tensor = _FrozenHeadLosses.apply(hidden, targets, head)  # type: ignore[no-untyped-call]
        return losses
    return _project(hidden, targets, head, gradient=None)


class _FrozenHeadLosses(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
        gradient = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        losses = _project(hidden, targets, head, gradient=gradient)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # The factor stays in float32: 1 / tokens rounded to bfloat16 would bias every update.
        return (gradient * upstream[:, None]).to(gradient.dtype), None, None


def _project(hidden: Tensor, targets: Tensor, head: Head, *, gradient: Tensor | None) -> Tensor:
    """The losses; fills `gradient`, if there is one, with theirs in the hidden states."""
    vocabulary = len(head.weight)
    rows, block = choose_rows(hidden.device, vocabulary)
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    buffer = hidden.new_empty(min(rows, len(hidden)), vocabulary)
    for first in range(0, len(hidden), rows):
        chunk = slice(first, min(first + rows, len(hidden)))
        logits = buffer[: chunk.stop - first]
        _multiply(hidden[chunk], head, out=logits)
        for start in range(first, chunk.stop, block):
            few = slice(start, min(start + block, chunk.stop))
            part = logits[few.start - first : few.stop - first]
            losses[few] = _score(part, targets[few, None], head, slopes=gradient is not None)
        if gradient is not None:
            torch.mm(logits, head.weight, out=gradient[chunk])
    return losses


def choose_rows(device: torch.device, vocabulary: int) -> tuple[int, int]:
    """Rows of a chunk, and of a block of it that goes through softmax together."""
    if device.type == "cpu":
        return CPU_ROWS, max(1, CPU_BLOCK // vocabulary)
    least, most = GPU_ROWS
    return min(max(GPU_LOGITS // vocabulary, least), most), max(1, GPU_BLOCK // vocabulary)


def _multiply(hidden: Tensor, head: Head, *, out: Tensor) -> None:
    if head.bias is None:
        torch.mm(hidden, head.weight.t(), out=out)
    else:
        torch.addmm(head.bias, hidden, head.weight.t(), out=out)


def _score(logits: Tensor, targets: Tensor, head: Head, *, slopes: bool) -> Tensor:
    """Losses of a few rows; with `slopes`, `logits` becomes their gradient in itself."""
    bent = logits.float()
    if head.scale != 1:
        bent = bent * head.scale
    if head.softcap is not None:
        bent = torch.tanh(bent / head.softcap) * head.softcap
    picked = bent.gather(1, targets)
    if not slopes:
        return (bent.logsumexp(1, keepdim=True) - picked)[:, 0]
    slope = torch.softmax(bent, 1)
    # The largest probability is exp(largest logit - log-sum-exp): no second pass of exponentials.
    losses = bent.amax(1, keepdim=True) - picked - slope.amax(1, keepdim=True).log()
    slope.scatter_(1, targets, slope.gather(1, targets) - 1)
    if head.softcap is not None:
        slope.mul_(1 - (bent / head.softcap).square())
    if head.scale != 1:
        slope.mul_(head.scale)
    logits.copy_(slope)
    return losses[:, 0]
