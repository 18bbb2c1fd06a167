"""What a recipe says about how a run ends, where two keys contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.recipe.sections.pace import OnPlateau
from peftkit.recipe.sections.section import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.recipe.quantized import Place
    from peftkit.recipe.schema import Recipe
    from peftkit.recipe.sections.train import TrainSection


def refuse_what_cannot_end(recipe: Recipe) -> None:
    """Say everything that keeps a run from ending as its recipe says.

    Raises:
        ValidationError: a key of `train` cannot go with another.
    """
    if problems := dict(_problems(recipe)):
        raise refused(problems)


def _problems(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    train = recipe.train
    stopping, steps = train.early_stopping, train.steps
    if train.average != "none" and train.keep_best == "on":
        what = "the weights of the best evaluation and averaged ones cannot both be kept"
        yield ("train", "average"), f"{what}; leave out `train.keep_best: on`"
    if isinstance(train.unfreeze, OnPlateau):
        yield from _of_thaws(train)
    if stopping == "none":
        return
    if stopping.forgetting != "none" and not recipe.evaluate.remember:
        what = "`forgetting` is measured on general text, and there is none"
        yield ("train", "early_stopping"), f"{what}; name some under `evaluate.remember`"
    every = recipe.evaluate.every
    if steps != "auto" and every >= steps:
        what = f"evaluations every {every} steps come too late to stop a run of {steps}"
        yield ("train", "early_stopping"), f"{what}; lower `evaluate.every`"


def _of_thaws(train: TrainSection) -> Iterator[tuple[Place, str]]:
    """What counts on all evaluations or weights of a run that may take some of them back."""
    what = "with `unfreeze: {every: plateau}` a thaw that does harm is taken back"
    if train.early_stopping != "none":
        why = f"{what}, and its evaluations would end the run before"
        yield ("train", "early_stopping"), f"{why}; `keep_best: on` keeps the best weights"
    if train.average != "none":
        why = f"{what}, and its weights would stay in the mean"
        yield ("train", "average"), f"{why}; unfreeze by `epoch`, or leave out `train.average`"


def keeps_best(recipe: Recipe) -> bool:
    """Whether the run ends with the weights of its best evaluation."""
    train = recipe.train
    if train.keep_best == "auto":
        return train.early_stopping != "none" and train.average == "none"
    return train.keep_best == "on"


def chooses(recipe: Recipe) -> bool:
    """Whether evaluations decide anything, so that the last step needs one of its own."""
    return keeps_best(recipe) or recipe.train.early_stopping != "none"


def watches_general_text(recipe: Recipe) -> bool:
    """Whether every evaluation measures what must not be forgotten as well."""
    stopping = recipe.train.early_stopping
    return stopping != "none" and stopping.forgetting != "none"
