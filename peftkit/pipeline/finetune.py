"""`finetune`, from a recipe to a report, top to bottom.

Of several processes this is what the first does; `follow` is what the others do. Each `tell`
here has its `hear` there, and each `wait` its own, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from peftkit.adapters.attach import base_only, trainable
from peftkit.adapters.stack import attach_over, describe
from peftkit.adapters.starts import start_on_rounding
from peftkit.adapters.store import save_adapter
from peftkit.base.load import load_base
from peftkit.base.quantize import source_tensors
from peftkit.errors import RecipeError, RunError
from peftkit.fast.frozen import find_cut, keep_states
from peftkit.fast.paths import PATHS, restore_paths
from peftkit.pipeline.choices import Choices, keep_choices, make_choices
from peftkit.pipeline.conclude import conclude, read_run
from peftkit.pipeline.ending import refuse_lost_saves
from peftkit.pipeline.identity import (
    changed_versions,
    find_changes,
    identify,
    refuse_another,
    refuse_fewer_steps,
    write_lock,
    write_recipe,
)
from peftkit.pipeline.inspect_rows import (
    inspect_rows,
    note_labels,
    say_what_is_wrong,
    told_of_labels,
)
from peftkit.pipeline.judge import evaluate_all, measure_drift
from peftkit.pipeline.plan import Plan, make_plan
from peftkit.pipeline.rate import settle_rate
from peftkit.pipeline.setup import set_up
from peftkit.pipeline.signals import listen
from peftkit.pipeline.stages import Asked, prepare_stages, train_stages
from peftkit.pipeline.steps import Job, take_steps
from peftkit.pipeline.watch import Silent
from peftkit.recipe.sections.regularize import acting
from peftkit.report.record import EVALUATIONS, check_space
from peftkit.train.checkpoint import check_fit, newest_checkpoint
from peftkit.train.groups import show_groups
from peftkit.train.processes import join

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.adapters.stack import Below
    from peftkit.data.example import Example
    from peftkit.fast.frozen import Kept
    from peftkit.pipeline.conclude import Run
    from peftkit.pipeline.setup import Setup
    from peftkit.pipeline.signals import Requests
    from peftkit.pipeline.watch import Watch
    from peftkit.recipe.load import LoadedRecipe
    from peftkit.recipe.schema import Recipe
    from peftkit.report.record import RunFolder
    from peftkit.train.checkpoint import Checkpoint
    from peftkit.train.processes import Processes

START_DOCUMENTS = 32
"""Rows whose inputs to each layer decide where `variant: eva` starts."""


@dataclass(frozen=True, slots=True)
class Start:
    """What other processes are told before they load anything."""

    recipe: Recipe
    run: RunFolder
    steps: int
    dtype: str
    identity: dict[str, Any]
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything up to the first step."""

    setup: Setup
    plan: Plan
    identity: dict[str, Any]
    checkpoint: Checkpoint | None
    """What the run goes on from."""
    damaged: list[str]
    """Newer checkpoints, and what is wrong with each."""
    changes: list[dict[str, Any]]
    """What is allowed to be other than the run began with, and is."""
    rows: dict[str, Any]
    """What `data.json` says."""


def prepare(
    loaded: LoadedRecipe,
    run: RunFolder,
    *,
    fresh: bool = False,
    fresh_data: bool = False,
    allow: Sequence[str] = (),
) -> Prepared:
    """Check recipe, base, data, disk and earlier saves, and write down what will happen."""
    if fresh:
        run.clear()
    refuse_another(run, loaded.recipe, allow)
    lock = run.read("lock.json") or {}
    setup = set_up(
        loaded.recipe,
        dtype=lock.get("choices", {}).get("dtype"),
        commits=lock.get("commits"),
        fresh_data=fresh_data,
    )
    identity = identify(loaded.recipe, setup)
    damaged: list[str] = []
    checkpoint = newest_checkpoint(run.checkpoints, damaged)
    changes = find_changes(run, loaded.recipe, identity, checkpoint, allow)
    plan = make_plan(loaded.recipe, setup)
    if checkpoint is not None:
        refuse_fewer_steps(checkpoint, plan.steps)
        if changes:
            refuse_lost_saves(loaded.recipe, run, checkpoint.step, plan.steps)
    check_space(run, plan.disk_bytes)
    if not changes:  # else not before `lock.json` says so
        write_recipe(run, loaded)
    earlier = {} if changes else told_of_labels(run)
    rows = setup.data.facts | inspect_rows(loaded.recipe, setup) | earlier
    run.write("data.json", rows)
    run.write("split.json", dict(setup.data.checks.split))
    run.write("plan.json", plan.facts)
    return Prepared(setup, plan, identity, checkpoint, damaged, changes, rows)


def dry_run(
    loaded: LoadedRecipe,
    run: RunFolder,
    *,
    fresh: bool = False,
    fresh_data: bool = False,
    allow: Sequence[str] = (),
    watch: Watch,
) -> None:
    """Everything up to the first step, and what is wrong with the rows."""
    if loaded.recipe.stages:
        prepare_stages(loaded, run, Asked(fresh, fresh_data, tuple(allow)), watch)
        return
    found = prepare(loaded, run, fresh=fresh, fresh_data=fresh_data, allow=allow)
    say_what_is_wrong(found.rows, loaded.recipe.base.task, watch)


def finetune(
    loaded: LoadedRecipe,
    run: RunFolder,
    *,
    fresh: bool = False,
    fresh_data: bool = False,
    allow: Sequence[str] = (),
    watch: Watch | None = None,
) -> Run:
    """Train what the recipe says in `run`, or go on where it stopped, and say if it helped.

    With stages each is a run of its own, in a folder inside `run`.
    """
    processes = join()
    with listen() as requests:
        session = Session(processes, requests, watch or Silent(), fresh_data)
        if loaded.recipe.stages:
            asked = Asked(fresh, fresh_data, tuple(allow))
            return processes.tell(train_stages(loaded, run, asked, session.watch, session.train))
        if fresh:
            run.clear()
        return processes.tell(session.train(loaded, run, allow, {}))


@dataclass(frozen=True, slots=True)
class Session:
    """What all trainings of one call share."""

    processes: Processes
    requests: Requests
    watch: Watch
    fresh_data: bool

    def train(
        self,
        loaded: LoadedRecipe,
        run: RunFolder,
        allow: Sequence[str],
        elsewhere: Mapping[str, Sequence[Example]],
    ) -> Run:
        """One training, from its recipe to its report.

        Args:
            loaded: the recipe, without stages.
            run: where it goes on, or begins.
            allow: keys that may be other than they were when it began.
            elsewhere: validation rows of other stages, on which it is measured too.
        """
        recipe, processes, watch = loaded.recipe, self.processes, self.watch
        prepared = prepare(loaded, run, fresh_data=self.fresh_data, allow=allow)
        setup, plan = replace(prepared.setup, elsewhere=elsewhere), prepared.plan
        if run.finished and not prepared.changes:
            watch.say(f"`{run.path}` is finished; `--fresh` would start over")
            return read_run(run)
        _say_what_is_there(prepared, recipe.adapter.under_as, watch)
        checkpoint, identity = prepared.checkpoint, prepared.identity
        processes.tell(Start(recipe, run, plan.steps, setup.dtype, identity, checkpoint))
        model = load_adapted(recipe, setup, fresh=checkpoint is None)
        if checkpoint is not None:
            check_fit(checkpoint, trainable(model))
        choices = _settle(loaded, run, prepared, model, processes, watch)
        torch.set_num_threads(processes.tell(choices).threads)
        _say_choices(choices, plan, processes, watch)
        kept = keep_base_states(setup, choices, model, watch)
        processes.wait()
        paths = restore_paths(model, head=choices.head, kept=kept)
        with base_only(model):
            note_labels(run, model, setup, recipe, plan, watch)
            before = evaluate_all(model, setup, recipe, paths, watch)
        if not run.lines(EVALUATIONS):
            run.append(EVALUATIONS, {"step": 0} | before.line)
        job = Job(recipe, setup, run, plan.steps, choices, paths, identity, checkpoint, processes)
        take_steps(model, job, self.requests, watch)
        with self.requests.deferred("the adapter is saved; its evaluation is left"):
            save_adapter(
                model,
                run.adapter,
                setup.origin,
                method=recipe.adapter.method,
                tokenizer=setup.changed_tokenizer,
                under=describe(setup.below, recipe.adapter.under_as),
            )
        after = evaluate_all(model, setup, recipe, paths, watch)
        return conclude(run, recipe, setup, before, after, measure_drift(model, setup))


def _refuse_several(recipe: Recipe, processes: Processes) -> None:
    if recipe.base.task == "embedding" and processes.world > 1:
        raise RecipeError(
            "base.task: an embedding compares the rows of an update with each other, which "
            f"{processes.world} processes cannot divide",
            hint="start one process",
        )


def load_adapted(recipe: Recipe, setup: Setup, *, fresh: bool = False) -> Any:
    """The base with the recipe's fresh adapter, above the frozen one it may name.

    A `fresh` one may start from documents, or from what quantizing rounded away; one that goes on,
    or is told its numbers, does not, unless it is to be pulled to where it started.
    """
    fresh = fresh or "decay_to_init" in acting(recipe.train.regularize)
    base = load_base(setup.base, device=setup.device, seed=recipe.seed, origin=setup.origin)
    model = attach_over(
        base.model,
        recipe.adapter,
        setup.below,
        seed=recipe.seed,
        base=setup.origin.name,
        documents=_opening(setup) if fresh else (),
        tokenizer=setup.tokenizer,
    )
    if fresh and getattr(recipe.adapter, "variant", None) == "loftq":
        start_on_rounding(model, source_tensors(setup.origin))
    return model


def _opening(setup: Setup) -> list[list[int]]:
    """Token ids of the first training documents."""
    examples = setup.data.train.examples[:START_DOCUMENTS]
    return [example.tokens.tolist() for example in examples]


def _settle(
    loaded: LoadedRecipe,
    run: RunFolder,
    prepared: Prepared,
    model: Any,
    processes: Processes,
    watch: Watch,
) -> Choices:
    """The choices of the earlier part of this run, or new ones, written down before any step."""
    _refuse_several(loaded.recipe, processes)
    lock = run.read("lock.json")
    if lock is not None and not prepared.changes:
        return keep_choices(lock["choices"], model, loaded.recipe)
    choices = make_choices(loaded.recipe, prepared.setup, prepared.plan, model)
    rate = settle_rate(loaded.recipe, prepared, choices, model, run, watch)
    choices = replace(choices, processes=processes.world, learning_rate=rate)
    run.reopen()
    write_lock(run, prepared.identity, choices, prepared.changes)
    write_recipe(run, loaded)
    return choices


def keep_base_states(setup: Setup, choices: Choices, model: Any, watch: Watch) -> Kept | None:
    """The states that enter the first adapted block, where they are to be kept."""
    if not choices.frozen:
        return None
    cut = find_cut(model)
    if isinstance(cut, str):
        raise RunError(f"the run began with {PATHS['frozen']}, which is no longer possible: {cut}")
    watch.say(f"computing once what {cut.first} frozen blocks make of the training documents")
    documents = setup.data.train.examples
    return keep_states(model, documents, cut, base=setup.standing_on, flat=choices.flat)


def _say_choices(choices: Choices, plan: Plan, processes: Processes, watch: Watch) -> None:
    for line in (*choices.lines, *show_groups(plan.groups)):
        watch.say(line)
    if processes.world > 1:
        watch.say(f"{processes.world} processes divide the rows of each update")
    if processes.world != choices.processes:
        watch.say(
            f"the run began with {choices.processes} process(es): from now on the last digits "
            "differ, and so does what dropout draws"
        )


def tell_beginning(below: Sequence[Below], how: str) -> list[str]:
    """What the adapter starts from, and is compared with, in words."""
    names = [f"`{each.name}`" for each in below]
    if how == "continued":
        return [f"{names[-1]} goes on training, and is compared with what it was"]
    place = "stands on a base with {} in its weights" if how == "folded" else "stands on {}"
    said = "the new adapter {}, and is compared with the base and that"
    return [said.format(place.format(name)) for name in names[-1 if how == "folded" else 0 :]]


def _say_what_is_there(prepared: Prepared, how: str, watch: Watch) -> None:
    for line in tell_beginning(prepared.setup.below, how):
        watch.say(line)
    for problem in prepared.damaged:
        watch.say(f"skipped a damaged checkpoint: {problem}")
    for change in prepared.changes:
        watch.say(f"allowed to change: {'; '.join(change['changes'])}")
    if prepared.checkpoint is not None and (others := changed_versions(prepared.checkpoint)):
        watch.say(f"the last digits may differ from now on: {', '.join(others)}")
    say_what_is_wrong(prepared.rows, prepared.setup.base.task, watch)
