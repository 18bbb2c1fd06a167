"""Thaw a run's blocks from the top down, and take a thaw back that made validation worse.

All is decided before a step, never after one: a checkpoint holds what the step left and what was
known before the evaluation that followed it, so going on from it decides again, and alike. Where a
spike stops the run it is saved after that, and says so.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peftkit.base.places import place_parameters
from peftkit.errors import InputError, RecipeError
from peftkit.fast.refusals import unwrap
from peftkit.pipeline.identity import with_versions
from peftkit.recipe.sections.pace import OnPlateau
from peftkit.report.record import EVALUATIONS, UNFREEZING
from peftkit.train.checkpoint import newest_checkpoint, read_state, restore, save_checkpoint
from peftkit.train.optimizer import freeze, thaw
from peftkit.train.unfreeze import (
    Depth,
    Known,
    decide,
    depth_by_epoch,
    first_steps,
    name_turns,
    recall,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch.nn import Parameter

    from peftkit.data.order import Order
    from peftkit.pipeline.steps import Job
    from peftkit.pipeline.watch import Watch
    from peftkit.recipe.schema import Recipe
    from peftkit.train.checkpoint import Checkpoint

STATE = "unfreezing"
"""Under which key `state.json` of a checkpoint keeps what is known."""
BEFORE_THAW = "before-thaw"
"""The folder, beside the checkpoints, of the one that a thaw may be taken back to."""


def begins_of(
    recipe: Recipe, turns: Mapping[str, int], order: Order, steps: int
) -> list[int | str]:
    """The step from which each turn learns, or why that is not known.

    Raises:
        RecipeError: no evaluation would come to decide it.
    """
    if not turns:
        return [1]
    count = max(turns.values()) + 1
    if isinstance(recipe.train.unfreeze, OnPlateau):
        _refuse_no_evaluation(recipe, steps)
        return [1, *["plateau"] * (count - 1)]
    begin = first_steps(count, rows=recipe.train.batch.rows, an_epoch=order.places(1))
    return [step if step <= steps else "never" for step in begin]


def _refuse_no_evaluation(recipe: Recipe, steps: int) -> None:
    if 2 * recipe.evaluate.every >= steps:
        raise RecipeError(
            f"train.unfreeze: validation decides on a plateau, and is measured every "
            f"{recipe.evaluate.every} of {steps} steps: no thaw could be judged",
            hint=f"`--set evaluate.every={max(steps // 10, 1)}`",
        )


@dataclass(slots=True)
class Gradual:
    """Which blocks of a run learn, from step to step; all of them where none is to wait."""

    job: Job
    parameters: Mapping[str, Parameter]
    optimizer: torch.optim.Optimizer
    turns: Mapping[str, int]
    names: list[str] = field(default_factory=list)
    known: Known = field(default_factory=Known)
    depth: int = 0
    """How many turns learn now; 0 before the first step, when nothing waits yet."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of it, for `state.json`."""
        return {STATE: self.known.facts} if self._on_plateau else {}

    @property
    def _on_plateau(self) -> bool:
        return isinstance(self.job.recipe.train.unfreeze, OnPlateau)

    def before(self, step: int, watch: Watch) -> None:
        """Let learn what is to learn in this step, given how the ones before it went."""
        if not self.turns or step > self.job.steps:
            return
        if self._on_plateau:
            self._decide(step - 1, watch)
            depth = self.known.depth
        else:
            depth = self._by_epoch(step - 1)
        if self.depth and depth > self.depth:
            watch.say(f"{self.names[depth - 1]} begins to learn at step {step}")
        self._apply(depth)

    def finish(self) -> None:
        """Let everything count as trained again, and note what each depth was worth."""
        if not self.turns:
            return
        thaw(self.optimizer, self.parameters.values())
        if self.job.processes.first:
            curve = self.known.curve if self._on_plateau else self._measured()
            facts = {
                "every": self.job.recipe.train.unfreeze.every,  # type: ignore[union-attr]
                "turns": self.names,
                "curve": [asdict(each) for each in curve],
            }
            self.job.run.write(UNFREEZING, facts)

    def _by_epoch(self, step: int) -> int:
        rows = self.job.recipe.train.batch.rows
        an_epoch = self.job.setup.data.mixture.order.places(1)
        return depth_by_epoch(step, rows=rows, an_epoch=an_epoch, turns=len(self.names))

    def _measured(self) -> list[Depth]:
        """The lowest validation loss while each depth lasted, where one was measured."""
        found: dict[int, Depth] = {}
        begins = {self._by_epoch(step): step for step in range(self.job.steps, -1, -1)}
        for line in self.job.run.lines(EVALUATIONS):
            if line["step"]:
                depth = self._by_epoch(line["step"] - 1)
                was = found.get(depth)
                loss = line["loss"] if was is None else min(line["loss"], was.loss)
                found[depth] = Depth(depth, self.names[depth - 1], begins[depth], loss, kept=True)
        return list(found.values())

    def _apply(self, depth: int) -> None:
        if depth == self.depth:
            return
        waiting = [p for name, p in self.parameters.items() if self.turns[name] >= depth]
        freeze(self.optimizer, waiting)
        thaw(self.optimizer, (p for n, p in self.parameters.items() if self.turns[n] < depth))
        self.depth = depth

    def _decide(self, step: int, watch: Watch) -> None:
        """Take in the evaluation after a step, if there was one."""
        if step % self.job.recipe.evaluate.every or step <= self.known.judged:
            return
        loss = self._share(self._loss_after(step) if self.job.processes.first else None)
        if loss is None:
            return
        recipe = self.job.recipe
        pace = recipe.train.unfreeze
        self.known, decision = decide(
            self.known,
            step,
            loss,
            names=self.names,
            patience=pace.patience if isinstance(pace, OnPlateau) else 1,
            again=step + recipe.evaluate.every < self.job.steps,
        )
        self.known = replace(self.known, judged=step)
        if decision == "thaw" and self.job.processes.first:
            self._keep(step)
        if decision == "roll back":
            undone = self.known.curve[-1]
            watch.say(
                f"{undone.name} made validation worse ({undone.loss:.4f}), so step "
                f"{undone.step} is gone back to, and no more blocks are thawed"
            )
            self._take_back(undone.step)

    def _loss_after(self, step: int) -> float | None:
        lines = self.job.run.lines(EVALUATIONS) if step else []
        return next((float(line["loss"]) for line in lines if line["step"] == step), None)

    def _share(self, loss: float | None) -> float | None:
        processes = self.job.processes
        told: float | None = processes.tell(loss) if processes.first else processes.hear()
        return told

    @property
    def _folder(self) -> Path:
        return self.job.run.checkpoints / BEFORE_THAW

    def _keep(self, step: int) -> None:
        """Save what a thaw may be taken back to, in place of what an earlier one was."""
        if self._folder.exists():
            shutil.rmtree(self._folder)
        save_checkpoint(
            self._folder,
            step,
            self.parameters,
            self.optimizer,
            digests=with_versions(self.job.identity),
            keep=1,
        )

    def _take_back(self, step: int) -> None:
        self.job.processes.wait()
        found = newest_checkpoint(self._folder)
        if found is None or found.step != step:
            raise InputError(
                f"`{self._folder}` does not hold what step {step} left, and that is to be put back",
                hint="`--fresh` starts over in this folder",
            )
        restore(found, self.parameters, self.optimizer)


def start_gradual(
    model: Any,
    job: Job,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    turns: Mapping[str, int],
) -> Gradual:
    """What decides, before each step, which blocks learn; as it was where a run goes on."""
    names = name_turns(place_parameters(model, unwrap(model)), turns) if turns else []
    known = _known_at(job.start) if turns else Known()
    return Gradual(job, parameters, optimizer, turns, names, known)


def _known_at(start: Checkpoint | None) -> Known:
    return recall(read_state(start).get(STATE) if start else None)
