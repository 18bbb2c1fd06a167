"""The highest learning rate of a run: the recipe's number, or what a range test finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.adapters.attach import trainable
from peftkit.data.batch import stream_updates
from peftkit.fast.paths import restore_paths
from peftkit.report.record import FINDER
from peftkit.train.finder import refuse_too_few, suggest, try_rates, untouched
from peftkit.train.groups import find_factors
from peftkit.train.optimizer import make_optimizer

if TYPE_CHECKING:
    from peftkit.pipeline.choices import Choices
    from peftkit.pipeline.finetune import Prepared
    from peftkit.pipeline.setup import Setup
    from peftkit.pipeline.watch import Watch
    from peftkit.recipe.schema import Recipe
    from peftkit.report.record import RunFolder
    from peftkit.train.finder import Trial


def settle_rate(
    recipe: Recipe,
    prepared: Prepared,
    choices: Choices,
    model: Any,
    run: RunFolder,
    watch: Watch,
) -> float:
    """The peak learning rate; a search leaves its curve in the run folder, and nothing else.

    That of a run which goes on is kept.

    Raises:
        RecipeError: the run is too short for a search, or has too few rows.
    """
    written = recipe.train.learning_rate
    if not isinstance(written, str):
        return written
    lock = run.read("lock.json")
    if lock and prepared.checkpoint is not None:
        earlier: float = lock["choices"]["learning_rate"]
        watch.say(f"the learning rate stays {earlier:.2g}, as the run is under way")
        return earlier
    plan = prepared.plan
    refuse_too_few(plan.steps, plan.rows, plan.rows_per_step)
    watch.say("looking for a learning rate: a range test, of which nothing is kept but its curve")
    trials = _search(recipe, prepared.setup, choices, model)
    found = suggest(trials)
    facts = {"suggestion": found, "trials": [trial.facts for trial in trials]}
    run.write(FINDER, facts)
    watch.say(f"the learning rate is {found:.2g}, from {len(trials)} trials")
    return found


def _search(recipe: Recipe, setup: Setup, choices: Choices, model: Any) -> list[Trial]:
    parameters = trainable(model)
    updates = stream_updates(
        setup.data.train.examples,
        choices.lay_out(setup.pad_id, setup.task),
        rows=recipe.train.batch.rows,
        seed=recipe.seed,
        order=setup.data.mixture.order,
    )
    with untouched(model, parameters):
        optimizer = make_optimizer(
            parameters,
            weight_decay=recipe.train.weight_decay,
            flat=choices.optimizer,
            paged=choices.paged,
            factors=find_factors(model, recipe.adapter, recipe.train),
        )
        return try_rates(
            model,
            updates,
            optimizer,
            max_grad_norm=recipe.train.max_grad_norm,
            seed=recipe.seed,
            loss=restore_paths(model, head=choices.head).summed,
        )
