"""The training loop: updates in, one `Step` out per optimizer update.

The loss of an update is the mean over all its trained tokens, however they fall into micro-batches,
so micro-batches change memory and, dropout aside, never the result. Dropout is seeded by (seed,
update, micro-batch), so it depends on nothing that happened before: evaluation in between, or a
restart, cannot change it and there is no random state to save.

Several processes take each update together, each with its part of the documents and a seed of its
own; they add up loss and gradients before anything is decided, so that all decide alike.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_

from peftkit.errors import RunError
from peftkit.fast.loss import summed_loss
from peftkit.train.optimizer import set_rate
from peftkit.train.processes import ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from peftkit.data.batch import Batch, Update
    from peftkit.train.processes import Processes

    LossFunction = Callable[[Any, Batch], Tensor]
    """Summed loss of a batch: the plain one, or a fast path that equals it."""
    Penalties = Callable[[Any, int, Update], dict[str, Tensor]]
    """Adds gradients beside those of a step's data, and says by name how large each term is."""

OTHERS = 2**32
"""Where seeds of further processes begin, far above the number of any micro-batch."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer update did."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    trained_tokens: int
    seconds: float
    penalty: dict[str, float] = field(default_factory=dict)
    """What was added to the loss, by name; `loss` is of the data alone."""


def train(  # noqa: PLR0913 - what a training run is made of, and nothing besides
    model: Any,
    updates: Iterator[Update],
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float],
    *,
    steps: range,
    max_grad_norm: float,
    seed: int,
    loss: LossFunction = summed_loss,
    penalties: Penalties | None = None,
    processes: Processes = ALONE,
) -> Iterator[Step]:
    """Update `model` in place, once for each of `steps`, yielding after each.

    Stops before an update whose loss or gradient is not finite: nothing non-finite is ever applied.
    All `processes` begin with the weights of the first, and end each step with the same.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    processes.take_from_first(parameters)
    for step in steps:
        started = time.perf_counter()
        update = next(updates)
        model.train()  # the caller may have evaluated since the last step
        own_seed = seed_of(seed, step, processes.rank)
        total = accumulate(model, update, device, seed=own_seed, loss=loss)
        terms = penalties(model, step, update) if penalties else {}
        if processes.world > 1:
            processes.add_up([total, *terms.values(), *_gradients(parameters)])
        size = clip_grad_norm_(parameters, max_grad_norm)
        told = torch.stack([total, size, *terms.values()]).tolist()  # the one wait of a step
        mean, norm = told[:2]
        if not math.isfinite(mean) or not math.isfinite(norm):
            raise RunError(
                f"training diverged at step {step}: loss {mean:.4g}, gradient norm {norm:.4g}",
                hint="lower `train.learning_rate` or raise `train.warmup`; nothing of this step "
                "was kept",
            )
        set_rate(optimizer, rate(step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # flat gradients keep their places
        seconds = time.perf_counter() - started
        counted = (update.real_tokens, update.trained_tokens)
        added = dict(zip(terms, told[2:], strict=True))
        yield Step(step, mean, norm, rate(step), *counted, seconds, added)


def accumulate(
    model: Any,
    update: Update,
    device: torch.device,
    *,
    seed: int,
    loss: LossFunction = summed_loss,
) -> Tensor:
    """Add the gradients of one update to the parameters; its loss per trained token.

    Of an update that processes divide it is this one's share of both.
    """
    total = torch.zeros((), device=device)
    for number, batch in enumerate(update.micro_batches):
        torch.manual_seed(mix(seed, number))
        share = loss(model, batch.to(device)) / max(update.trained_tokens, 1)
        share.backward()
        total += share.detach()
    return total


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of one process's part of a step; the first one's is that of a process alone."""
    own = mix(seed, step)
    return mix(own, OTHERS + rank) if rank else own


def mix(seed: int, number: int) -> int:
    """A seed of its own for each (seed, number), far from its neighbors'."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    value = ((value ^ (value >> 31)) * 0xD6E8FEB86659FD93) % 2**64
    return (value ^ (value >> 29)) % 2**63


def _gradients(parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    """The gradient of each parameter; zeros where this process had nothing to compute it from."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        yield parameter.grad
