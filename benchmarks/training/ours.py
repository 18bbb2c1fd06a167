"""The arms of this package: its own loop, layout, loss and optimizer, each technique a switch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from arm import LEARNING_RATE, MAX_GRAD_NORM, Reading, Timed, Work
from clock import cpu_seconds
from documents import LONGEST
from plain import take_gradients
from shapes import RANK, Bases, fill_adapter

from peftkit.adapters.attach import attach, trainable
from peftkit.base.machine import total_memory
from peftkit.base.memory import Load, choose_micro_batch, shape_of_config
from peftkit.data.batch import Layout, make_update
from peftkit.fast import lora, norm
from peftkit.fast.compiled import compile_blocks
from peftkit.fast.frozen import Kept, find_cut, keep_states
from peftkit.fast.paths import restore_paths
from peftkit.fast.varlen import enable
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.train.loop import accumulate, train
from peftkit.train.optimizer import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.batch import Update
    from peftkit.data.example import Example

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Switches:
    """Which techniques are on: all of them, unless said."""

    dtype: torch.dtype = torch.bfloat16
    rows: Literal["flat", "dense", "packed", "padded"] = "flat"
    """`flat`: documents end to end, each attending to itself; `dense`: the same rows, and the mask
    that transformers makes of their positions; `packed`: rows as wide as the longest document of an
    update, with that mask; `padded`: a document a row."""
    head: bool = True
    """Loss through the frozen head, or of all logits."""
    lora: bool = True
    """LoRA in the base's number format, or as peft has it."""
    norm: bool = True
    """Norms that keep their input alone, or as the family has them."""
    optimizer: bool = True
    """AdamW over one buffer, or over each parameter."""
    layers: Literal["all", "upper-half"] = "all"
    kept: bool = False
    """Whether what the blocks below the adapter compute is kept."""
    compiled: bool = False
    """Whether `torch.compile` has the blocks."""


FULL = Switches()
SWITCHES = {
    "peftkit": FULL,
    "peftkit with a dense mask": replace(FULL, rows="dense"),
    "peftkit without flat rows": replace(FULL, rows="packed"),
    "peftkit without packing": replace(FULL, rows="padded"),
    "peftkit with all logits": replace(FULL, head=False),
    "peftkit with peft's LoRA": replace(FULL, lora=False),
    "peftkit with the family's norms": replace(FULL, norm=False),
    "peftkit with plain AdamW": replace(FULL, optimizer=False),
    "peftkit in float32": replace(FULL, dtype=torch.float32),
    "peftkit with everything off": Switches(
        torch.float32, rows="padded", head=False, lora=False, norm=False, optimizer=False
    ),
    "peftkit compiled": replace(FULL, compiled=True),
    "peftkit on the upper half": replace(FULL, layers="upper-half"),
    "peftkit on the upper half, cached": replace(FULL, layers="upper-half", kept=True),
}


class OurArm:
    """`peftkit.train.loop.train`, an update at a time."""

    def __init__(self, bases: Bases, switches: Switches, documents: Sequence[Example]) -> None:
        section = LoraSection(rank=RANK, layers=switches.layers)
        self.model: Any = attach(bases.make(switches.dtype), section, seed=0)
        self.work = _describe_work(bases, switches)
        self._layout = _choose_layout(self.model, switches)
        if switches.rows == "flat" and (reason := enable(self.model)):
            raise RuntimeError(reason)
        if switches.lora and (reason := lora.enable(self.model)):
            raise RuntimeError(reason)
        if switches.norm:
            norm.enable(self.model)
        kept = _keep(self.model, documents, flat=switches.rows == "flat") if switches.kept else None
        self._paths = restore_paths(self.model, head=switches.head, kept=kept)
        if switches.head and self._paths.head is None:
            raise RuntimeError("the frozen head is refused")
        if switches.compiled and (reason := compile_blocks(self.model)):
            raise RuntimeError(reason)
        self._switches = switches
        self.reset()

    def reset(self) -> None:
        """See `Arm`."""
        parameters = trainable(self.model)
        fill_adapter(parameters)
        flat = self._switches.optimizer
        self._optimizer = make_optimizer(parameters, weight_decay=0.0, flat=flat)
        self._taken = 0

    def read(self, documents: Sequence[Example]) -> Reading:
        """See `Arm`."""
        self.model.train()
        update = self._lay_out(documents)
        loss = float(accumulate(self.model, update, CPU, seed=0, loss=self._paths.summed))
        return Reading(loss, take_gradients(self.model))

    def step(self, documents: Sequence[Example]) -> Timed:
        """See `Arm`."""
        started = cpu_seconds()
        self._taken += 1
        (step,) = train(
            self.model,
            iter([self._lay_out(documents)]),
            self._optimizer,
            lambda _: LEARNING_RATE,
            steps=range(self._taken, self._taken + 1),
            max_grad_norm=MAX_GRAD_NORM,
            seed=0,
            loss=self._paths.summed,
        )
        return Timed(cpu_seconds() - started, step.loss)

    def _lay_out(self, documents: Sequence[Example]) -> Update:
        return make_update(documents, self._layout)


def _choose_layout(model: Any, switches: Switches) -> Layout:
    """As a run chooses it for a large corpus, whose longest document is as long as allowed."""
    sizes = shape_of_config(model.config, sum(p.numel() for p in model.parameters()))
    rows, _ = choose_micro_batch(
        sizes,
        Load(sizes.layers, logits=not switches.head),
        rows=None,
        most_rows=LONGEST,
        width=LONGEST,
        memory=total_memory(),
        on_gpu=False,
        bytes_a_number=switches.dtype.itemsize,
    )
    return Layout(
        packing=switches.rows != "padded",
        micro_rows=rows,
        pad_id=0,
        flat=switches.rows in ("flat", "dense"),
        micro_tokens=rows * LONGEST,
    )


def _describe_work(bases: Bases, switches: Switches) -> Work:
    if switches.layers == "all":
        return Work(switches.dtype)
    count = bases.shape.layers
    upper = tuple(range(count // 2, count))
    share = len(upper) / count
    forward = share if switches.kept else 1.0
    return Work(switches.dtype, backward=share, forward=forward, layers=upper)


def _keep(model: Any, documents: Sequence[Example], *, flat: bool) -> Kept:
    """The states of all documents, computed before the clock runs, as a run computes them once."""
    cut = find_cut(model)
    if isinstance(cut, str):
        raise RuntimeError(cut)
    return keep_states(model, documents, cut, base="random", flat=flat)
