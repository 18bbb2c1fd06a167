"""The steps of a run: logged, evaluated and saved by plain code around the loop that yields.

Of several processes the first does all of that, while the others wait for it. They agree after each
step whether to stop, because a signal reaches one earlier than another.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.adapters.attach import trainable
from peftkit.data.batch import stream_updates
from peftkit.evaluate.losses import choose_rows
from peftkit.evaluate.predictions import measure_rows
from peftkit.pipeline.ending import (
    Verdict,
    find_end,
    find_spared,
    judge_evaluation,
    settle,
    warn_of_overfitting,
)
from peftkit.pipeline.gradual import start_gradual
from peftkit.pipeline.identity import with_versions
from peftkit.pipeline.judge import measure_remembered
from peftkit.pipeline.regularization import add_terms
from peftkit.pipeline.signals import Interrupted, stopped
from peftkit.recipe.ending import chooses, watches_general_text
from peftkit.report.record import EVALUATIONS, STEPS
from peftkit.train.average import take_in
from peftkit.train.checkpoint import read_average, restore, save_checkpoint
from peftkit.train.gradients import group_by_block
from peftkit.train.groups import find_factors
from peftkit.train.loop import train
from peftkit.train.optimizer import make_optimizer
from peftkit.train.processes import ALONE
from peftkit.train.schedule import learning_rate
from peftkit.train.spikes import Lookout, SpikeError, recent_of
from peftkit.train.unfreeze import turns_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import Tensor
    from torch.nn import Parameter

    from peftkit.fast.paths import Paths
    from peftkit.pipeline.choices import Choices
    from peftkit.pipeline.gradual import Gradual
    from peftkit.pipeline.setup import Setup
    from peftkit.pipeline.signals import Requests
    from peftkit.pipeline.watch import Progress, Watch
    from peftkit.recipe.schema import Recipe
    from peftkit.report.record import RunFolder
    from peftkit.train.checkpoint import Checkpoint
    from peftkit.train.loop import Step
    from peftkit.train.processes import Processes
    from peftkit.train.regularize.terms import Terms


@dataclass(frozen=True, slots=True)
class State:
    """What changes from step to step, and what a save holds of it."""

    parameters: Mapping[str, Parameter]
    optimizer: torch.optim.Optimizer
    mean: dict[str, Tensor]
    """The exponential mean of the weights; empty without one."""


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
    """Take every step that is still to be taken, from the newest checkpoint on.

    Afterwards the model of the first process has the weights that the run ends with.
    """
    parameters, turns = trainable(model), turns_of(job.recipe.train, model)
    terms = add_terms(model, job, watch)  # before what was trained is put back
    optimizer = make_optimizer(
        parameters,
        weight_decay=job.recipe.train.weight_decay,
        flat=job.choices.optimizer,
        paged=job.choices.paged,
        factors=find_factors(model, job.recipe.adapter, job.recipe.train),
        turns=turns,
    )
    processes, state = job.processes, State(parameters, optimizer, _mean_at(job))
    done, steps = _go_on(model, job, state, terms, watch)
    gradual = start_gradual(model, job, parameters, optimizer, turns)
    gradual.before(done + 1, watch)
    finished = "every step is taken and saved; the evaluation is left"
    with (
        requests.deferred(finished),
        watch.progress(job.steps, "training") as show,
        _saved_at_a_spike(job, state, gradual),
    ):
        for step in steps:
            _take_mean(job, state)
            if processes.first:
                _record(model, job, step, requests, show)
                _say_what_happened(job, step, watch)
            verdict = _agree(job, step.step)
            last = step.step == job.steps or verdict is Verdict.STOP
            number = processes.largest(requests.number)
            if last or number or verdict or step.step % job.recipe.train.save_every == 0:
                if processes.first:
                    _save(job, step.step, state, gradual.facts)
                number = processes.largest(requests.number)  # one may have come meanwhile
            if number and not last:
                raise stopped(number, f"step {step.step} of {job.steps} is saved")
            if last:
                break
            gradual.before(step.step + 1, watch)
    gradual.finish()
    if processes.first:
        settle(job.recipe, job.run, parameters, state.mean)


def _go_on(
    model: Any, job: Job, state: State, terms: Terms | None, watch: Watch
) -> tuple[int, Iterator[Step]]:
    """How many steps are taken, and those that are left; none where the run has ended early."""
    done = _resume(job, state)
    if job.processes.first:
        _take_up(model, job, done, watch)
    ended = _agree(job, done) is Verdict.STOP
    return done, iter(()) if ended else _steps(model, job, state, done, terms)


def _steps(model: Any, job: Job, state: State, done: int, terms: Terms | None) -> Iterator[Step]:
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
        state.optimizer,
        rate,
        steps=range(done + 1, job.steps + 1),
        max_grad_norm=train_section.max_grad_norm,
        loss=terms.loss if terms else job.paths.summed,
        penalties=terms.penalties if terms else None,
        seed=job.recipe.seed,
        processes=job.processes,
        lookout=_look_out(job, state.parameters),
    )


def _look_out(job: Job, parameters: Mapping[str, Parameter]) -> Lookout:
    """What is watched over the steps; what was usual before them is known from the log."""
    processes = job.processes
    recent = (
        processes.tell(recent_of(job.run.lines(STEPS))) if processes.first else processes.hear()
    )
    lookout = Lookout(job.recipe.train.on_spike, group_by_block(parameters))
    lookout.recent.extend(recent)
    return lookout


@contextmanager
def _saved_at_a_spike(job: Job, state: State, gradual: Gradual) -> Iterator[None]:
    """Save the step before a spike that ends the run."""
    try:
        yield
    except SpikeError as found:
        if job.processes.first:
            _save(job, found.step - 1, state, gradual.facts)
        raise


def _agree(job: Job, step: int) -> Verdict:
    """What the evaluation after a step means, the same in every process."""
    if not chooses(job.recipe) or not _is_due(job, step):
        return Verdict.GO_ON
    processes = job.processes
    own = judge_evaluation(job.recipe, job.run, step) if processes.first else Verdict.GO_ON
    return Verdict(processes.largest(own))


def _mean_at(job: Job) -> dict[str, Tensor]:
    """The exponential mean where the run goes on; empty where nothing was taken into it yet."""
    if job.start is None or not job.processes.first:
        return {}
    mean = read_average(job.start) or {}
    device = job.setup.device
    return {name: value.to(device) for name, value in mean.items()}


def _take_mean(job: Job, state: State) -> None:
    """Take the weights after a step into the exponential mean, where there is one."""
    average = job.recipe.train.average
    if average != "none" and average.ema != "none" and job.processes.first:
        take_in(state.mean, state.parameters, average.ema)


def _resume(job: Job, state: State) -> int:
    """Steps already taken: weights and optimizer are put back to the newest whole save."""
    if job.start is None:
        return 0
    restore(job.start, state.parameters, state.optimizer)
    return job.start.step


def _take_up(model: Any, job: Job, done: int, watch: Watch) -> None:
    """Put the logs back to the newest whole save as well, and make good what was cut short."""
    last = done if chooses(job.recipe) else min(done, job.steps - 1)
    job.run.forget_after(done, evaluated=last)
    if not done:
        return
    watch.say(f"going on from step {done} of {job.steps}")
    if not any(line["step"] == done for line in job.run.lines(EVALUATIONS)):
        _evaluate_if_due(model, job, done)


def _record(model: Any, job: Job, step: Step, requests: Requests, show: Progress) -> None:
    """Log a step, show it, and evaluate after it if that is due."""
    job.run.append(STEPS, step.facts)
    pace = step.tokens / max(step.seconds, 1e-9)
    show(step.step, loss=step.loss, tokens_per_second=pace)
    with suppress(Interrupted), requests.at_once():
        _evaluate_if_due(model, job, step.step)


def _say_what_happened(job: Job, step: Step, watch: Watch) -> None:
    """Say at once what calls for a look: a spike, a stop, validation that turned up."""
    if step.spike is not None:
        watch.say(step.spike.sentence + ("; its update was left out" if step.skipped else ""))
    if not _is_due(job, step.step):
        return
    if words := warn_of_overfitting(job.run):
        watch.say(words)
    if stop := find_end(job.recipe, job.run):
        watch.say(f"stopping after step {step.step} of {job.steps}: {stop.sentence}")


def _save(job: Job, step: int, state: State, known: Mapping[str, Any]) -> None:
    job.run.keep_lines()
    save_checkpoint(
        job.run.checkpoints,
        step,
        state.parameters,
        state.optimizer,
        digests=with_versions(job.identity),
        keep=job.recipe.train.keep,
        about={"recipe": job.recipe.model_dump(mode="json"), **known},
        average=state.mean or None,
        spare=find_spared(job.recipe, job.run, step),
    )


def _is_due(job: Job, step: int) -> bool:
    """Whether a step is evaluated by itself; the last one mostly is with all else at the end."""
    if step == job.steps:
        return chooses(job.recipe)
    return step > 0 and step % job.recipe.evaluate.every == 0


def _evaluate_if_due(model: Any, job: Job, step: int) -> None:
    if not _is_due(job, step):
        return
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
    line: dict[str, Any] = {"step": step, "loss": rows.per_token}
    if watches_general_text(job.recipe):
        line["remember"] = measure_remembered(model, job.setup, job.recipe, job.paths)
    job.run.append(EVALUATIONS, line | {"seconds": round(time.perf_counter() - started, 3)})
