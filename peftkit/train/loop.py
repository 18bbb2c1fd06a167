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
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_

from peftkit.errors import RunError
from peftkit.fast.loss import summed_loss
from peftkit.train.gradients import EVERY, norms_of
from peftkit.train.optimizer import set_rate
from peftkit.train.processes import ALONE
from peftkit.train.spikes import Lookout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

    from peftkit.data.batch import Batch, Update
    from peftkit.train.processes import Processes
    from peftkit.train.spikes import Spike

    LossFunction = Callable[[Any, Batch], Tensor]
    """Summed loss of a batch: the plain one, or a fast path that equals it."""
    Penalties = Callable[[Any, int, Update], dict[str, Tensor]]
    """Adds gradients beside those of a step's data, and says by name how large each term is."""

RARE = ("blocks", "skipped", "penalty")
"""What few lines of `steps.jsonl` have."""
OTHERS = 2**32
"""Where seeds of further processes begin, far above the number of any micro-batch."""


class DivergedError(RunError):
    """A loss or a gradient is not finite."""


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
    blocks: Mapping[str, float] = field(default_factory=dict)
    """Gradient norm of each block, at the steps where that was looked at."""
    spike: Spike | None = None
    """What was sudden about it."""
    skipped: bool = False
    """Whether its update was left out."""
    penalty: Mapping[str, float] = field(default_factory=dict)
    """What was added to the loss, by name; `loss` is of the data alone."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `steps.jsonl` says; a spike follows from the lines before."""
        values = asdict(self)
        del values["spike"]
        return {name: value for name, value in values.items() if value or name not in RARE}


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
    lookout: Lookout | None = None,
) -> Iterator[Step]:
    """Update `model` in place, once for each of `steps`, yielding after each.

    Stops before an update whose loss or gradient is not finite: nothing non-finite is ever applied.
    What it does at one that is finite but far above those before, `lookout` says.
    All `processes` begin with the weights of the first, and end each step with the same.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    lookout = lookout or Lookout()
    processes.take_from_first(parameters)
    for step in steps:
        started = time.perf_counter()
        update = next(updates)
        learning = [p for p in parameters if p.requires_grad]  # a frozen block's do not, for now
        model.train()  # the caller may have evaluated since the last step
        own_seed = seed_of(seed, step, processes.rank)
        total = accumulate(model, update, device, seed=own_seed, loss=loss)
        terms = penalties(model, step, update) if penalties else {}
        if processes.world > 1:
            processes.add_up([total, *terms.values(), *_gradients(learning)])
        size = clip_grad_norm_(learning, max_grad_norm)
        told = torch.stack([total, size, *terms.values()]).tolist()  # the one wait of a step
        mean, norm = told[:2]
        _refuse_not_finite(step, mean, norm)
        spike = lookout.judge(step, mean, norm)
        skipped = spike is not None and lookout.action == "skip"
        look = bool(lookout.blocks) and (spike is not None or step % EVERY == 0)
        blocks = norms_of(lookout.blocks, norm) if look else {}
        if not skipped:
            set_rate(optimizer, rate(step))
            optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # flat gradients keep their places
        seconds = time.perf_counter() - started
        counted = (update.real_tokens, update.trained_tokens)
        added = dict(zip(terms, told[2:], strict=True))
        yield Step(step, mean, norm, rate(step), *counted, seconds, blocks, spike, skipped, added)


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


def _refuse_not_finite(step: int, loss: float, norm: float) -> None:
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise DivergedError(
            f"training diverged at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}",
            hint="lower `train.learning_rate` or raise `train.warmup`; nothing of this step "
            "was kept",
        )


def _gradients(parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    """The gradient of each parameter; zeros where this process had nothing to compute it from."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        yield parameter.grad
