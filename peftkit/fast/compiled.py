"""Blocks that `torch.compile` makes fewer, larger steps of, for runs long enough to earn it back.

Only what trains is compiled: evaluation takes the plain blocks, or it would be compiled a second
time. Attention within documents stays outside, because its steps depend on the documents. Lengths
change from batch to batch, so they are compiled as unknown. What cannot be compiled later on runs
as it is.
"""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from peftkit.base.targets import first_trained_block, list_blocks
from peftkit.fast.refusals import unwrap
from peftkit.fast.varlen import outside_graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

BREAK_EVEN_SECONDS = 1200.0
"""Training from which it pays: on shape M it takes 60 to 100 s and then saves 8 %."""


def refuse_compile(seconds: float, *, recomputed: int) -> str | None:
    """Why a run of about so many seconds is not compiled, if so."""
    if recomputed:
        return "blocks that run again are not compiled"
    if seconds < BREAK_EVEN_SECONDS:
        return f"about {seconds:.0f} s of training are too short to earn back the time it takes"
    if not torch.cuda.is_available() and shutil.which("g++") is None:
        return "there is no g++ on this machine"
    return None


def compile_blocks(model: Any) -> str | None:
    """Let the blocks from the first adapted one up train compiled; None, or why they cannot."""
    blocks = _blocks_that_train(model)
    if any("forward" in vars(block) for block in blocks):
        return "something has replaced the forward pass of its blocks"
    import torch._dynamo as dynamo  # slow to load, and for long runs alone

    dynamo.config.suppress_errors = True  # a shape that fails later runs as it is
    outside_graphs()
    for block in blocks:
        plainly = block.forward
        block.forward = partial(_forward, block, torch.compile(plainly, dynamic=True), plainly)
    return None


def release_blocks(model: Any) -> None:
    """Give the blocks their own forward pass back."""
    for block in _blocks_that_train(model):
        if _is_ours(block):
            del block.forward


def check_compiled(model: Any, step: Callable[[], Tensor]) -> float:
    """How far a compiled step is from a plain one in loss, relatively.

    Raises:
        NotImplementedError: the blocks are not what can be compiled; a compiler raises much else.
    """
    import torch._dynamo as dynamo

    release_blocks(model)
    wanted = step()
    if reason := compile_blocks(model):
        raise NotImplementedError(reason)
    dynamo.config.suppress_errors = False  # what fails here and now is to be known
    try:
        found = step()
    finally:
        dynamo.config.suppress_errors = True
    return float((found - wanted).abs() / wanted.abs())


def is_on(model: Any) -> bool:
    """Whether blocks train compiled."""
    return any(_is_ours(block) for block in list_blocks(unwrap(model)))


def _is_ours(block: Any) -> bool:
    return getattr(vars(block).get("forward"), "func", None) is _forward


def _blocks_that_train(model: Any) -> Sequence[Any]:
    plain = unwrap(model)
    return list_blocks(plain)[first_trained_block(model, plain) :]


def _forward(
    block: Any,
    compiled: Callable[..., Any],
    plainly: Callable[..., Any],
    *inputs: Any,
    **settings: Any,
) -> Any:
    trains = block.training and torch.is_grad_enabled()
    return (compiled if trains else plainly)(*inputs, **settings)
