"""`finetune`, from a recipe to a report, top to bottom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from peftkit.adapters.attach import attach, base_only
from peftkit.adapters.store import save_adapter
from peftkit.base.load import load_base
from peftkit.data.batch import Layout
from peftkit.pipeline.choices import Choices, make_choices
from peftkit.pipeline.conclude import conclude, read_run
from peftkit.pipeline.identity import (
    identify,
    refuse_another,
    refuse_changed,
    write_lock,
    write_recipe,
)
from peftkit.pipeline.judge import evaluate_all
from peftkit.pipeline.plan import Plan, make_plan
from peftkit.pipeline.setup import set_up
from peftkit.pipeline.signals import listen
from peftkit.pipeline.steps import Job, take_steps
from peftkit.pipeline.watch import Silent
from peftkit.report.record import EVALUATIONS, check_space

if TYPE_CHECKING:
    from peftkit.pipeline.conclude import Run
    from peftkit.pipeline.setup import Setup
    from peftkit.pipeline.watch import Watch
    from peftkit.recipe.load import LoadedRecipe
    from peftkit.report.record import RunFolder


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything up to the first step."""

    setup: Setup
    plan: Plan
    identity: dict[str, Any]


def prepare(loaded: LoadedRecipe, run: RunFolder, *, fresh: bool = False) -> Prepared:
    """Check recipe, base, data and disk, and write down what will happen."""
    if fresh:
        run.clear()
    refuse_another(run, loaded.recipe)
    setup = set_up(loaded.recipe)
    identity = identify(loaded.recipe, setup)
    refuse_changed(run, identity)
    plan = make_plan(loaded.recipe, setup)
    check_space(run.path, plan.disk_bytes)
    write_recipe(run, loaded)
    run.write("data.json", setup.data.facts)
    run.write("plan.json", plan.facts)
    return Prepared(setup, plan, identity)


def finetune(
    loaded: LoadedRecipe, run: RunFolder, *, fresh: bool = False, watch: Watch | None = None
) -> Run:
    """Train the recipe's adapter in `run`, or go on where it stopped, and say if it helped."""
    watch = watch or Silent()
    recipe = loaded.recipe
    with listen() as requests:
        prepared = prepare(loaded, run, fresh=fresh)
        setup, plan = prepared.setup, prepared.plan
        if run.finished:
            watch.say(f"`{run.path}` is finished; `--fresh` would start over")
            return read_run(run)
        base = load_base(recipe.base, device=setup.device, seed=recipe.seed, origin=setup.origin)
        model = attach(base.model, recipe.adapter, seed=recipe.seed)
        choices = _settle(loaded, run, prepared, model)
        torch.set_num_threads(choices.threads)
        watch.say(f"packing is {_on(choices.packing)}: {choices.why['packing']}")
        watch.say(f"{choices.threads} CPU thread(s): {choices.why['threads']}")
        with base_only(model):
            before = evaluate_all(model, setup, recipe, watch)
        if not run.lines(EVALUATIONS):
            run.append(EVALUATIONS, {"step": 0, "loss": before.sets["validation"].rows.per_token})
        layout = Layout(choices.packing, choices.micro_rows, setup.pad_id)
        job = Job(recipe, setup, run, plan.steps, layout, prepared.identity)
        take_steps(model, job, requests, watch)
        save_adapter(model, run.adapter, setup.origin, method=recipe.adapter.method)
        after = evaluate_all(model, setup, recipe, watch)
        return conclude(run, recipe, setup, before, after)


def _settle(loaded: LoadedRecipe, run: RunFolder, prepared: Prepared, model: Any) -> Choices:
    """The choices of the earlier part of this run, or new ones, written down before any step."""
    lock = run.read("lock.json")
    if lock is not None:
        return Choices(**lock["choices"])
    choices = make_choices(loaded.recipe, prepared.setup, prepared.plan, model)
    write_lock(run, prepared.identity, choices)
    return choices


def _on(value: bool) -> str:  # noqa: FBT001 - a word for a truth value
    return "on" if value else "off"
