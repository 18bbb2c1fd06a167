"""Measure a run, an adapter or a base on rows that are already known or newly given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.data.prepare import read_set
from peftkit.errors import RecipeError
from peftkit.evaluate.evaluation import evaluate_set
from peftkit.pipeline.setup import make_encoder, task_of
from peftkit.pipeline.target import open_target
from peftkit.recipe.sections.data import DataSection, SourceSection
from peftkit.recipe.sections.evaluate import EvaluateSection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.draft import Encoder
    from peftkit.pipeline.target import Target
    from peftkit.recipe.schema import Recipe


def evaluate(
    name: str,
    *,
    recipe: Recipe | None = None,
    data: Sequence[str] = (),
    adapters: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures of the target on each set, by the set's name."""
    target = open_target(name, adapters, like=recipe.base if recipe else None)
    recipe = recipe or target.recipe
    sets = _sets(recipe, data)
    section = recipe.data if recipe else DataSection.model_validate({"train": "-"})
    length = section.max_length if recipe else target.base.window or section.max_length
    section = section.model_copy(update={"max_length": length})
    encoder = make_encoder(target.section, section, target.base.tokenizer, target.stops)
    how = recipe.evaluate if recipe else EvaluateSection()
    if metrics:
        how = EvaluateSection.model_validate(how.model_dump() | {"metrics": tuple(metrics)})
    return {
        label: _measure(target, sources, encoder, section.bad_rows, how)
        for label, sources in sets.items()
    }


def _sets(recipe: Recipe | None, data: Sequence[str]) -> dict[str, tuple[SourceSection, ...]]:
    if data:
        return {path: (SourceSection(source=path),) for path in data}
    if recipe is None:
        raise RecipeError(
            "nothing to evaluate on",
            hint="`--data FILE` names rows; `--recipe RECIPE` uses those of a recipe",
        )
    validation = getattr(recipe.data.validation, "sources", ())
    test = recipe.data.test if isinstance(recipe.data.test, tuple) else ()
    named = {"validation": validation, "test": test}
    sets = {label: tuple(sources) for label, sources in named.items() if sources}
    if not sets:
        raise RecipeError(
            "the recipe holds its validation rows out of the training rows and names no others",
            hint="`--data FILE` names rows to evaluate on; the run's own figures are in its report",
        )
    return sets


def _measure(
    target: Target,
    sources: Sequence[SourceSection],
    encoder: Encoder,
    bad_rows: str,
    section: EvaluateSection,
) -> dict[str, Any]:
    found = read_set("evaluation", sources, bad_rows, encoder)
    return evaluate_set(
        target.model,
        found.examples,
        target.base.tokenizer,
        section,
        pad_id=target.base.pad_id,
        stops=target.stops,
        task=task_of(target.section, target.base.origin, target.base.tokenizer),
    ).summary
