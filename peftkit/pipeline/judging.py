"""How a merge recipe is judged: rows and base once, numbers before the merge, figures after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import RecipeError
from peftkit.evaluate.retention import BASE, MERGED
from peftkit.merge.delta import Delta
from peftkit.pipeline.bench import open_bench
from peftkit.pipeline.coefficients import Wanted, search_numbers
from peftkit.pipeline.conclude_merge import conclude_merge
from peftkit.pipeline.judge_merge import judge_merge
from peftkit.pipeline.merge_terms import base_of, mix
from peftkit.recipe.merge_schema import CONTROL
from peftkit.recipe.sections.evaluate import EvaluateSection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.merge.parents import Parent
    from peftkit.pipeline.bench import Bench
    from peftkit.pipeline.coefficients import Searched
    from peftkit.pipeline.merge_terms import Terms
    from peftkit.pipeline.watch import Watch
    from peftkit.recipe.merge_schema import MergeRecipe
    from peftkit.recipe.sections.merge import SearchSection

SAMPLES = 4
"""Rows of each set that the report shows."""


@dataclass(frozen=True, slots=True)
class Judging:
    """What waits for the merge, and the numbers that it is to be made with."""

    bench: Bench
    parents: dict[str, Delta | Path]
    weights: dict[str, float]
    searched: Searched | None


def start_judging(
    recipe: MergeRecipe,
    parents: tuple[Parent, ...],
    terms: Terms | None,
    base: str,
    watch: Watch,
) -> Judging:
    """Load the base and the rows, and search the numbers where the recipe wants it.

    Args:
        recipe: which asks for some rows to judge by.
        parents: what the formula names.
        terms: their changes; None where whole models are merged that nothing is searched of.
        base: what they change.
        watch: is told of it.

    Raises:
        RecipeError: a name is taken.
        InputError: rows cannot be used, or there are too few.
        RunError: no numbers keep the constraint.
    """
    _refuse_taken(recipe)
    asked = recipe.evaluate
    given = {} if terms is None else terms.given
    bench = open_bench(
        base,
        list(given.values()),
        asked.tasks,
        asked.control,
        how=EvaluateSection(rows=asked.rows, samples=SAMPLES),
    )
    models: dict[str, Delta | Path] = {
        each.name: given.get(each.name, Path(recipe.adapters[each.name])) for each in parents
    }
    weights, searched = recipe.weights, None
    if recipe.search is not None and terms is not None:
        wanted = _wanted(recipe.search, recipe.seed)
        bench = bench.divided(wanted.sets, wanted.holdout)
        searched = _search(recipe, bench, terms, wanted, watch)
        weights = searched.numbers
    return Judging(bench, models, weights, searched)


def end_judging(judging: Judging, recipe: MergeRecipe, out: Path, watch: Watch) -> dict[str, Any]:
    """Judge the merge as it was saved, and write the report; what both said, in short."""
    whole = recipe.output.form == "weights"
    merged = out if whole else Delta.load(out, base_of(recipe))
    judgment = judge_merge(
        judging.bench, judging.parents, judging.weights, merged, watch, seed=recipe.seed
    )
    return conclude_merge(out, judgment, judging.searched)


def _refuse_taken(recipe: MergeRecipe) -> None:
    """Say where a parent is called what others are, or a task what the control rows are."""
    taken = [f"adapters.{name}" for name in recipe.weights if name in (BASE, MERGED)]
    taken += [f"evaluate.tasks.{CONTROL}"] if CONTROL in recipe.evaluate.tasks else []
    if taken:
        raise RecipeError(
            f"{taken[0]}: the figures of the base, the merge and the control rows are called so",
            hint="give it another name",
        )


def _wanted(section: SearchSection, seed: int) -> Wanted:
    return Wanted(
        over={name: (bounds[0], bounds[1]) for name, bounds in section.over.items()},
        objective=section.objective,
        direction=section.direction,
        subject_to=section.subject_to,
        budget=section.budget,
        holdout=section.holdout,
        seed=seed,
    )


def _search(
    recipe: MergeRecipe, bench: Bench, terms: Terms, wanted: Wanted, watch: Watch
) -> Searched:
    """By turning the terms of a sum; by another method, or to a lower rank, by merging anew."""
    output = recipe.output
    rank = None if output.rank == "all" else output.rank
    energy = None if output.energy == "all" else output.energy
    turned = recipe.method.name == "sum" and not recipe.method.normalize

    def mixed(weights: Mapping[str, float]) -> Delta:
        return mix(recipe, terms, weights).compress(rank=rank, energy=energy)

    return search_numbers(
        bench,
        terms.deltas,
        recipe.weights,
        wanted,
        watch,
        brings=mix(recipe, terms, recipe.weights),
        mix=None if turned and rank is None and energy is None else mixed,
    )
