"""The steps of a run: logged, evaluated and saved by plain code around the loop that yields.

Of several processes the first does all of that, while the others wait for it. They agree after each
step whether to stop, because a signal reaches one earlier than another.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from peftkit.adapters.attach import trainable
from peftkit.data.batch import stream_updates
from peftkit.evaluate.losses import choose_rows
from peftkit.evaluate.predictions import measure_rows
from peftkit.pipeline.gradual import start_gradual
from peftkit.pipeline.identity import with_versions
from peftkit.pipeline.signals import Interrupted, stopped
from peftkit.report.record import EVALUATIONS, STEPS
from peftkit.train.checkpoint import restore, save_checkpoint
from peftkit.train.groups import find_factors
from peftkit.train.loop import train
from peftkit.train.optimizer import make_optimizer
from peftkit.train.processes import ALONE
from peftkit.train.schedule import learning_rate
from peftkit.train.unfreeze import turns_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from peftkit.fast.paths import Paths
    from peftkit.pipeline.choices import Choices
    from peftkit.pipeline.setup import Setup
    from peftkit.pipeline.signals import Requests
    from peftkit.pipeline.watch import Progress, Watch
    from peftkit.recipe.schema import Recipe
    from peftkit.report.record import RunFolder
    from peftkit.train.checkpoint import Checkpoint
    from peftkit.train.loop import Step
    from peftkit.train.processes import Processes


@dataclass(frozen=True, slots=True)
class Job:
    """What stays the same over all steps of a run."""

    recipe: Recipe
    setup: Setup
    run: RunFolder
    steps: int
    choices: Choices
    paths: Paths
    identity: Mapping[str, Any]
    start: Checkpoint | None = None
    """Where an earlier part of the run stopped."""
    processes: Processes = ALONE


def take_steps(model: Any, job: Job, requests: Requests, watch: Watch) -> None:
    """Take every step that is still to be taken, from the newest checkpoint on."""
    parameters, turns = trainable(model), turns_of(job.recipe.train, model)
    optimizer = make_optimizer(
        parameters,
        weight_decay=job.recipe.train.weight_decay,
        flat=job.choices.optimizer,
        paged=job.choices.paged,
        factors=find_factors(model, job.recipe.adapter, job.recipe.train),
        turns=turns,
    )
    processes = job.processes
    done = _resume(job, parameters, optimizer)
    if processes.first:
        _take_up(model, job, done, watch)
    gradual = start_gradual(model, job, parameters, optimizer, turns)
    gradual.before(done + 1, watch)
    finished = "every step is taken and saved; the evaluation is left"
    with requests.deferred(finished), watch.progress(job.steps, "training") as show:
        for step in _steps(model, job, optimizer, done):
            if processes.first:
                _record(model, job, step, requests, show)
            last = step.step == job.steps
            number = processes.largest(requests.number)
            if last or number or step.step % job.recipe.train.save_every == 0:
                if processes.first:
                    _save(job, step.step, parameters, optimizer, gradual.facts)
                number = processes.largest(requests.number)  # one may have come meanwhile
            if number and not last:
                raise stopped(number, f"step {step.step} of {job.steps} is saved")
            if not last:
                gradual.before(step.step + 1, watch)
    gradual.finish()


def _steps(model: Any, job: Job, optimizer: torch.optim.Optimizer, done: int) -> Iterator[Step]:
    train_section = job.recipe.train
    updates = stream_updates(
        job.setup.data.train.examples,
        job.choices.lay_out(job.setup.pad_id, job.setup.task),
        rows=train_section.batch.rows,
        seed=job.recipe.seed,
        start=done,
        part=job.processes.rank,
        parts=job.processes.world,
        order=job.setup.data.mixture.order,
    )

    def rate(step: int) -> float:
        return learning_rate(
            train_section.schedule,
            step,
            steps=job.steps,
            peak=job.choices.learning_rate,
            warmup=train_section.warmup,  # type: ignore[arg-type]  # the section has settled it
        )

    return train(
        model,
        updates,
        optimizer,
        rate,
        steps=range(done + 1, job.steps + 1),
        max_grad_norm=train_section.max_grad_norm,
        loss=job.paths.summed,
        seed=job.recipe.seed,
        processes=job.processes,
    )


def _resume(job: Job, parameters: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> int:
    """Steps already taken: weights and optimizer are put back to the newest whole save."""
    if job.start is None:
        return 0
    restore(job.start, parameters, optimizer)
    return job.start.step


def _take_up(model: Any, job: Job, done: int, watch: Watch) -> None:
    """Put the logs back to the newest whole save as well, and make good what was cut short."""
    job.run.forget_after(done, evaluated=min(done, job.steps - 1))
    if not done:
        return
    watch.say(f"going on from step {done} of {job.steps}")
    if not any(line["step"] == done for line in job.run.lines(EVALUATIONS)):
        _evaluate_if_due(model, job, done)


def _record(model: Any, job: Job, step: Step, requests: Requests, show: Progress) -> None:
    """Log a step, show it, and evaluate after it if that is due."""
    job.run.append(STEPS, asdict(step))
    pace = step.tokens / max(step.seconds, 1e-9)
    show(step.step, loss=step.loss, tokens_per_second=pace)
    with suppress(Interrupted), requests.at_once():
        _evaluate_if_due(model, job, step.step)


def _save(
    job: Job,
    step: int,
    parameters: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    known: Mapping[str, Any],
) -> None:
    job.run.keep_lines()
    save_checkpoint(
        job.run.checkpoints,
        step,
        parameters,
        optimizer,
        digests=with_versions(job.identity),
        keep=job.recipe.train.keep,
        about={"recipe": job.recipe.model_dump(mode="json"), **known},
    )


def _evaluate_if_due(model: Any, job: Job, step: int) -> None:
    if step == job.steps or step % job.recipe.evaluate.every:
        return  # the last step is evaluated with all else at the end
    started = time.perf_counter()
    chosen = choose_rows(job.setup.data.validation.examples, job.recipe.evaluate.rows)
    rows = measure_rows(
        model,
        chosen,
        job.setup.tokenizer,
        job.setup.pad_id,
        losses_of=job.paths.each,
        task=job.setup.task,
    )
    seconds = round(time.perf_counter() - started, 3)
    job.run.append(EVALUATIONS, {"step": step, "loss": rows.per_token, "seconds": seconds})
