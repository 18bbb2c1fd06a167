"""What `train.regularize` asks that the task or the adapter cannot give, refused with its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.recipe.sections.adapter import IN_PLACE
from peftkit.recipe.sections.regularize import acting
from peftkit.recipe.sections.section import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.recipe.schema import Recipe

WITH_CLASSES = ("causal-lm", "masked-lm", "seq2seq", "classification", "token-classification")
"""Tasks whose loss is a cross entropy over classes or tokens."""
BASE_KNOWS = ("causal-lm", "masked-lm")
"""Tasks that the base does before it is adapted; in others its head is new, and says nothing."""


def refuse_what_cannot_be_added(recipe: Recipe) -> None:
    """Say every entry that cannot work.

    Raises:
        ValidationError: an entry cannot go with the task or the adapter.
    """
    names = [next(iter(entry.model_fields_set)) for entry in recipe.train.regularize]
    found = {name: sentence for name, sentence in _problems(recipe) if sentence}
    if found:
        places = {name: ("train", "regularize", names.index(name), name, name) for name in found}
        raise refused({places[name]: sentence for name, sentence in found.items()})


def _problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for name in acting(recipe.train.regularize):
        if name in ("r_drop", "label_smoothing"):
            yield name, _of_classes(recipe)
        if name in ("ewc", "kl"):
            yield name, _of_the_base(recipe)
        if name in ("ewc", "l2sp"):
            yield name, _of_weights(recipe)


def _of_classes(recipe: Recipe) -> str:
    task = recipe.base.task
    return "" if task in WITH_CLASSES else f"it is for tasks with classes, and this is {task}"


def _of_the_base(recipe: Recipe) -> str:
    task = recipe.base.task
    if task in BASE_KNOWS:
        return ""
    return f"the base answers {task} with a head that is new and says nothing of general text"


def _of_weights(recipe: Recipe) -> str:
    adapter = recipe.adapter
    if adapter.method not in ("lora", *IN_PLACE):
        what = f"what `{adapter.method}` adds to a layer is no change of its weights"
    elif getattr(adapter, "variant", "plain") == "dora":
        what = "what `dora` adds to a layer is no product of two factors"
    else:
        return ""
    return f"{what}; `decay_to_init` pulls its parameters to where they started"
