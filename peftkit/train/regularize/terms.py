"""Everything that a run adds to its loss, put together once and asked in each step.

What depends on weights alone is added by the first of several processes; what depends on rows, by
each for its own. The loss that is told stays that of the data: what is added acts through its
gradients, and is told apart from it, by name.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from peftkit.adapters.attach import trainable
from peftkit.errors import RecipeError
from peftkit.evaluate.losses import choose_rows
from peftkit.fast.loss import trained_scores
from peftkit.fast.varlen import DROPOUTS
from peftkit.train.loop import mix, seed_of
from peftkit.train.processes import ALONE
from peftkit.train.regularize.decay_to_init import decay_to_init
from peftkit.train.regularize.ewc import ewc
from peftkit.train.regularize.kept_fisher import find_fisher
from peftkit.train.regularize.kl import General, distill
from peftkit.train.regularize.l2sp import l2sp
from peftkit.train.regularize.label_smoothing import smoothing
from peftkit.train.regularize.neftune import noise
from peftkit.train.regularize.parts import tell_parts
from peftkit.train.regularize.r_drop import disagreement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from peftkit.data.batch import Batch, Layout, Update
    from peftkit.data.example import Example
    from peftkit.fast.paths import Paths
    from peftkit.train.processes import Processes

GENERAL = 2**31
"""Where the dropout seeds of general rows begin, above the number of any micro-batch."""
CANNOT: dict[str, tuple[str, str]] = {
    "r_drop": ("head", "`r_drop` compares every logit of two passes"),
    "label_smoothing": ("head", "`label_smoothing` has a target at every logit"),
    "neftune": ("frozen", "`neftune` adds noise below the first adapter"),
}
"""Fast paths that an entry rules out, and why."""


def ruled_out(names: Sequence[str]) -> dict[str, str]:
    """Fast paths that entries of these names rule out, and why."""
    return dict(CANNOT[name] for name in reversed(names) if name in CANNOT)


def added_bytes(names: Iterable[str], parameters: int, trainable: int) -> int:
    """Memory that entries of these names keep: a number for each weight, and a start."""
    each = {"ewc": 4 * parameters, "decay_to_init": 4 * trainable}
    return sum(each.get(name, 0) for name in names)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run has, whatever it adds to its loss."""

    paths: Paths
    layout: Layout
    general: Mapping[str, Sequence[Example]]
    """Rows of general text, by the entry that looks at them."""
    base: str
    """Key of all that is frozen."""
    seed: int
    processes: Processes = ALONE


@dataclass(frozen=True, slots=True)
class Terms:
    """What is added to the loss of a run."""

    paths: Paths
    seed: int
    processes: Processes
    weights: Mapping[str, Callable[[], Tensor]]
    """Penalties of weights alone, by name; each adds its gradients and gives its size."""
    distillation: Any
    """Settings of `kl`, or None."""
    general: General | None
    smoothing: float
    r_drop: float
    neftune: float
    _within: dict[str, Tensor] = field(default_factory=dict)
    """What the losses since the last step had in them."""

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The summed loss of a batch, whose gradients are of what is added as well."""
        noisy = noise(model, batch, self.neftune) if self.neftune else nullcontext()
        with noisy:
            if not (self.smoothing or self.r_drop):
                return self.paths.summed(model, batch)
            return self._of_scores(model, batch)

    def _of_scores(self, model: Any, batch: Batch) -> Tensor:
        fed: AbstractContextManager[None] = self.paths.fed(batch)
        with fed:
            passes = [trained_scores(model, batch) for _ in range(2 if self.r_drop else 1)]
        targets = passes[0][1]
        data = torch.stack([cross_entropy(s, targets, reduction="sum") for s, _ in passes]).mean()
        added = torch.zeros_like(data)
        if self.r_drop:
            (one, _), (other, _) = passes
            added = added + self._note("r_drop", disagreement(one, other, self.r_drop))
        if self.smoothing:
            each = [smoothing(scores, targets, self.smoothing) for scores, _ in passes]
            added = added + self._note("label_smoothing", torch.stack(each).mean())
        return data + (added - added.detach())

    def _note(self, name: str, value: Tensor) -> Tensor:
        self._within[name] = self._within.get(name, torch.zeros_like(value)) + value.detach()
        return value

    def penalties(self, model: Any, step: int, update: Update) -> dict[str, Tensor]:
        """Add the gradients of all else, and say how large each term is; this process's share."""
        first = next(p for p in model.parameters() if p.requires_grad)
        nothing = torch.zeros((), device=first.device)
        found = {}
        for name, penalty in self.weights.items():
            found[name] = penalty() if self.processes.first else nothing.clone()
        if self.general is not None:
            torch.manual_seed(mix(seed_of(self.seed, step, self.processes.rank), GENERAL))
            rows = self.general.at(step, self.processes.rank, self.processes.world)
            found["kl"] = distill(model, rows, self.distillation.strength, self.distillation.top)
        for name, used in (("r_drop", self.r_drop), ("label_smoothing", self.smoothing)):
            if used:
                value = self._within.pop(name, nothing) / max(update.trained_tokens, 1)
                found[name] = value.to(first.device, torch.float32)
        return found


def make_terms(model: Any, wanted: Mapping[str, Any], around: Surroundings) -> Terms:
    """What the entries of `train.regularize` ask for, of a model that is as it starts.

    Args:
        model: with its fresh adapter; what was trained before may be put back afterwards.
        wanted: settings by the name of the entry; none of them of strength 0.
        around: what the run has.

    Raises:
        RecipeError: `r_drop` would compare two passes that are the same.
    """
    if "r_drop" in wanted and "neftune" not in wanted:
        _refuse_without_chance(model)
    kl = wanted.get("kl")
    return Terms(
        around.paths,
        around.seed,
        around.processes,
        _penalties(model, wanted, around) if around.processes.first else _same_names(wanted),
        kl,
        General(around.general["kl"], kl.rows, around.layout, around.seed) if kl else None,
        _strength(wanted, "label_smoothing"),
        _strength(wanted, "r_drop"),
        _strength(wanted, "neftune"),
    )


def _strength(wanted: Mapping[str, Any], name: str) -> float:
    return float(wanted[name].strength) if name in wanted else 0.0


def _same_names(wanted: Mapping[str, Any]) -> dict[str, Callable[[], Tensor]]:
    """Penalties of another process: the first alone adds them."""
    order = ("l2sp", "ewc", "decay_to_init")
    return {name: partial(torch.zeros, ()) for name in order if name in wanted}


def _penalties(
    model: Any, wanted: Mapping[str, Any], around: Surroundings
) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {}
    parts = tell_parts(model) if {"l2sp", "ewc"} & set(wanted) else None
    if parts and (settings := wanted.get("l2sp")):
        found["l2sp"] = partial(l2sp, parts, settings.strength, settings.head)
    if parts and (settings := wanted.get("ewc")):
        layout = around.layout
        rows = choose_rows(around.general["ewc"], settings.rows)
        task, pad_id = layout.task, layout.pad_id
        fisher = find_fisher(model, parts, rows, task=task, pad_id=pad_id, base=around.base)
        found["ewc"] = partial(ewc, parts, fisher, settings.strength)
    if settings := wanted.get("decay_to_init"):
        own = trainable(model)
        starts = {name: parameter.detach().clone() for name, parameter in own.items()}
        found["decay_to_init"] = partial(decay_to_init, own, starts, settings.strength)
    return found


def _refuse_without_chance(model: Any) -> None:
    """Say that nothing would make two passes differ."""
    dropped = any(
        isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p
        for module in model.modules()
    )
    config = model.config.get_text_config()
    if not dropped and not any(getattr(config, name, 0) for name in DROPOUTS):
        raise RecipeError(
            "train.regularize: `r_drop` compares two passes that dropout makes differ, and this "
            "model has none",
            hint="`--set adapter.dropout=0.1`",
        )
