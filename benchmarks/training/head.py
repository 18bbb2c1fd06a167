"""The head alone, from hidden states to the loss and back: plain logits, TRL's tiles, this one."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rounds import spread, time_functions
from torch.nn.functional import cross_entropy, linear

from peftkit.fast.chunked import Head, project_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shapes import Shape

TOKENS = 512
TOLERANCE = 2e-3


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Hidden states, the weight they meet, and the target of each, -1 where none is trained."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor


def compare_heads(shape: Shape, densities: Sequence[float], rounds: int) -> dict[str, Any]:
    """Tokens a CPU second of each way at each density, in bfloat16; all must give one loss."""
    return {f"{density:g}": _compare(make_task(shape, density), rounds) for density in densities}


def make_task(shape: Shape, density: float) -> Task:
    """The last `density` of the tokens carries loss."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, shape.hidden, generator=generator)
    weight = torch.randn(shape.vocabulary, shape.hidden, generator=generator) * shape.hidden**-0.5
    targets = torch.randint(shape.vocabulary, (TOKENS,), generator=generator)
    targets[: TOKENS - round(density * TOKENS)] = -1
    return Task(hidden.bfloat16().requires_grad_(), weight.bfloat16(), targets)


def _compare(task: Task, rounds: int) -> dict[str, Any]:
    ways: dict[str, Callable[[Task], torch.Tensor]] = {"plain": _plain, "peftkit": _ours}
    if importlib.util.find_spec("trl") is not None:
        ways["trl"] = _trl
    wanted, slope = _differentiate(
        _plain, Task(task.hidden.float(), task.weight.float(), task.targets)
    )
    found: dict[str, Any] = {}
    for name, way in ways.items():
        loss, gradient = _differentiate(way, task)
        cosine = torch.cosine_similarity(gradient.float().flatten(), slope.flatten(), dim=0)
        near = abs(loss - wanted) <= TOLERANCE * wanted and float(cosine) > 0.999
        found[name] = {"equal": bool(near)}
    functions = {name: lambda way=way: _differentiate(way, task) for name, way in ways.items()}
    for name, seconds in time_functions(functions, rounds).items():
        found[name]["tokens_per_second"] = spread([TOKENS / each for each in seconds])
    return found


def _differentiate(way: Callable[[Task], torch.Tensor], task: Task) -> tuple[float, torch.Tensor]:
    leaf = task.hidden.detach().requires_grad_()
    loss = way(Task(leaf, task.weight, task.targets))
    loss.backward()
    return loss.item(), leaf.grad


def _plain(task: Task) -> torch.Tensor:
    logits = linear(task.hidden, task.weight).float()
    return cross_entropy(logits, task.targets, ignore_index=-1)


def _ours(task: Task) -> torch.Tensor:
    places = (task.targets >= 0).nonzero()[:, 0]
    picked = task.hidden.index_select(0, places)
    return project_losses(picked, task.targets[places], Head(task.weight)).mean()


def _trl(task: Task) -> torch.Tensor:
    """As `SFTTrainer` calls it where there is no Triton: every position, masked afterwards."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    scores = ("log_probs", "entropy", "is_top1")
    settings = (1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, scores)
    targets = task.targets.clamp(min=0)
    found = ChunkedLogProbFunction.apply(task.hidden, task.weight, None, targets, *settings)
    mask = task.targets >= 0
    return -found[0].masked_fill(~mask, 0).sum() / mask.sum()
