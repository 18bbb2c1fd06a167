"""How a run ends: whether an evaluation ends it, which saves stay for that, and its weights.

Every answer follows from the recipe, the logs and the saves, so a resumed run gives the same.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from peftkit.errors import RecipeError
from peftkit.recipe.ending import keeps_best
from peftkit.report.record import EVALUATIONS, STEPS
from peftkit.train.average import averaged_steps, mean_of_files, put
from peftkit.train.checkpoint import WEIGHTS, checkpoint_folder, checkpoint_of, step_of
from peftkit.train.stopping import best_step, find_stop, is_overfitting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from peftkit.recipe.schema import Recipe
    from peftkit.report.record import RunFolder
    from peftkit.train.stopping import Stop


RISING = 0.05
"""Share above its best by which validation loss may be before the run says so."""


class Verdict(IntEnum):
    """What an evaluation means for the run; a number, so that processes can agree on it."""

    GO_ON = 0
    KEEP = 1
    STOP = 2


def judge_evaluation(recipe: Recipe, run: RunFolder, step: int) -> Verdict:
    """What the evaluation after a step means, if there was one."""
    evaluations = run.lines(EVALUATIONS)
    if not evaluations or evaluations[-1]["step"] != step:
        return Verdict.GO_ON
    if find_end(recipe, run) is not None:
        return Verdict.STOP
    best = keeps_best(recipe) and _best(recipe, evaluations) == step
    return Verdict.KEEP if best else Verdict.GO_ON


def find_end(recipe: Recipe, run: RunFolder) -> Stop | None:
    """Why the run ended before its last step, as far as it is logged."""
    section = recipe.train.early_stopping
    if section == "none":
        return None
    steps = run.lines(STEPS) if section.overfitting != "none" else []
    return find_stop(run.lines(EVALUATIONS), steps, section)


def warn_of_overfitting(run: RunFolder) -> str | None:
    """That validation loss rises while training loss falls, if it does after the last step."""
    evaluations = run.lines(EVALUATIONS)
    best = min(float(line["loss"]) for line in evaluations)
    last = evaluations[-1]
    if last["loss"] <= (1 + RISING) * best:
        return None  # before the log of all steps is read
    if not is_overfitting(evaluations, run.lines(STEPS), RISING):
        return None
    return (
        f"validation loss is {last['loss']:.3f} at step {last['step']}, its best was {best:.3f}, "
        "and training loss goes on falling"
    )


def find_spared(recipe: Recipe, run: RunFolder, step: int) -> set[int]:
    """Steps up to this one whose saves the run may end with."""
    spared = set()
    if keeps_best(recipe) and (best := _best(recipe, run.lines(EVALUATIONS))) is not None:
        spared.add(best)
    average = recipe.train.average
    if average != "none" and average.last != "none":
        spared.update(averaged_steps(recipe.train.save_every, average.last, step))
    return spared


def refuse_lost_saves(recipe: Recipe, run: RunFolder, done: int, planned: int) -> None:
    """Say that a run which was changed after `done` steps needs saves that it did not spare.

    Raises:
        RecipeError: weights that it would end with are gone.
    """
    needed: set[int] = set()
    if keeps_best(recipe):
        known = [line for line in run.lines(EVALUATIONS) if line["step"] <= done]
        needed.update(filter(None, [_best(recipe, known)]))
    average = recipe.train.average
    if average != "none" and average.last != "none":
        end = planned if recipe.train.early_stopping == "none" else done + 1  # the next may be it
        needed.update(averaged_steps(recipe.train.save_every, average.last, end))
    folders = [checkpoint_folder(run.checkpoints, step) for step in sorted(needed) if step <= done]
    if missing := [folder for folder in folders if not folder.exists()]:
        raise RecipeError(
            f"train: the run would end with weights of step {step_of(missing[0])}, which were not "
            "kept, as it began with other keys",
            hint="`--set train.keep_best=off --set train.average=none --allow-change train` ends "
            "with its last weights; with the keys that it began with it goes on as it was",
        )


def settle(
    recipe: Recipe,
    run: RunFolder,
    parameters: Mapping[str, Parameter],
    mean: Mapping[str, Tensor],
) -> None:
    """Give the model the weights that the run ends with, after all its steps.

    Raises:
        RunError: a save that they come from is damaged or gone.
    """
    average = recipe.train.average
    if average != "none" and average.ema != "none":
        put(parameters, mean)
        return
    taken = run.lines(STEPS)[-1]["step"]
    steps = kept_steps(recipe, run, taken)
    if steps == [taken]:
        return
    paths = [checkpoint_of(run.checkpoints, step).folder / WEIGHTS for step in steps]
    put(parameters, load_file(paths[0]) if len(paths) == 1 else mean_of_files(paths, parameters))


def kept_steps(recipe: Recipe, run: RunFolder, taken: int) -> list[int]:
    """The steps whose weights the run ends with, or ends with the mean of."""
    if keeps_best(recipe):
        return [_best(recipe, run.lines(EVALUATIONS)) or taken]
    average = recipe.train.average
    if average == "none" or average.last == "none":
        return [taken]
    return averaged_steps(recipe.train.save_every, average.last, taken)


def describe_end(recipe: Recipe, run: RunFolder, planned: int) -> dict[str, Any]:
    """What `metrics.json` says of the steps."""
    taken = run.lines(STEPS)[-1]["step"]
    stop, average = find_end(recipe, run), recipe.train.average
    what = "best" if keeps_best(recipe) else "last" if average == "none" else "mean"
    if average != "none" and average.ema != "none":
        what = "exponential mean"
    return {
        "planned": planned,
        "taken": taken,
        "skipped": sum(line.get("skipped", False) for line in run.lines(STEPS)),
        "stopped": stop.facts if stop else None,
        "kept": {"weights": what, "steps": kept_steps(recipe, run, taken)},
    }


def _best(recipe: Recipe, evaluations: Sequence[Mapping[str, Any]]) -> int | None:
    section = recipe.train.early_stopping
    limit = None if section == "none" or section.forgetting == "none" else section.forgetting
    return best_step(evaluations, limit)
