"""`merge`: what a formula of adapters and fine-tuned models gives, told first and then written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.disk.replacing import refuse_to_replace
from peftkit.errors import PeftkitError, RecipeError, RunError
from peftkit.merge.base_weights import open_base
from peftkit.merge.checkpoints import How, merge_checkpoints
from peftkit.merge.folding import fold_delta, refuse_what_has_no_place
from peftkit.merge.model_files import MERGE_FILE, Finish
from peftkit.merge.saving import DTYPES, prepare, save_delta
from peftkit.merge.terms import Layers, Part
from peftkit.pipeline.merge_terms import base_of, find_parents, load_terms, mix, settings_of
from peftkit.pipeline.preflight import error_by_rank, look, peak_memory
from peftkit.pipeline.provenance import record
from peftkit.pipeline.watch import Silent
from peftkit.recipe.expression import explain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from peftkit.merge.delta import Delta
    from peftkit.merge.parents import Parent
    from peftkit.pipeline.merge_terms import Terms
    from peftkit.pipeline.watch import Watch
    from peftkit.recipe.merge_schema import MergeRecipe


SILENT = Silent()


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge is."""

    facts: dict[str, Any]
    refusal: PeftkitError | None = None
    """Why it would not be written."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be merged, and what is to become of it."""

    recipe: MergeRecipe
    parents: tuple[Parent, ...]
    out: Path
    dry_run: bool
    earlier: Mapping[str, Any] | None
    watch: Watch


def merge(
    recipe: MergeRecipe,
    out: Path,
    *,
    dry_run: bool = False,
    earlier: Mapping[str, Any] | None = None,
    watch: Watch = SILENT,
) -> Merged:
    """What the formula gives, and how its terms stand to each other, written to `out`.

    Where the recipe names rows under `evaluate`, numbers may be searched on them before, and the
    result is judged on them after it was written.

    Args:
        recipe: the merge.
        out: the folder of the result.
        dry_run: only look.
        earlier: what the record of an earlier result says, where this is the same again.
        watch: is told how far a search and the judging are.

    Raises:
        RecipeError: an adapter is not there, or the recipe does not fit what is.
        InputError: an adapter is damaged or cannot be a term of a sum.
        RunError: the cut costs more than it may, or a search finds no numbers that it may take.
    """
    parents = find_parents(recipe)
    streams = _streams(recipe, parents) and not dry_run
    terms = None if streams and recipe.search is None else load_terms(recipe, parents)
    rows = recipe.evaluate
    asked = _Asked(recipe, parents, out, dry_run, earlier, watch)
    if dry_run or earlier is not None or not (rows.tasks or rows.control):
        weights = recipe.weights if earlier is None else dict(earlier["weights"])
        return _merge(asked, terms, weights)
    from peftkit.pipeline.judging import end_judging, start_judging  # only these need a model

    refuse_to_replace(out, MERGE_FILE)
    said = terms.base if terms else next((each.base for each in parents if each.base), None)
    judging = start_judging(recipe, parents, terms, _named_base(recipe, said), watch)
    found = _merge(asked, None if streams else terms, judging.weights)
    return Merged(found.facts | end_judging(judging, recipe, out, watch))


def _merge(asked: _Asked, terms: Terms | None, weights: Mapping[str, float]) -> Merged:
    """The merge with these numbers; whole models, of which no terms were loaded, by streaming."""
    recipe, out = asked.recipe, asked.out
    if terms is None:
        return Merged(_stream(asked, weights))
    total = mix(recipe, terms, weights)
    output = recipe.output
    merged = total.compress(
        rank=None if output.rank == "all" else output.rank,
        energy=None if output.energy == "all" else output.energy,
    )
    figures = look(recipe, terms, weights, total, merged)
    refusal = _refuse(recipe, terms, merged, out)
    facts = figures | {
        "out": None if asked.dry_run else str(out),
        "refused": refusal.message if refusal else None,
        "disk": _disk(recipe, terms, merged),
        "memory": peak_memory(),
    }
    if asked.dry_run:
        whole = total.compress(energy=1.0) if total.dense and merged.error.layers else total
        facts["error_by_rank"] = error_by_rank(list(whole.spectra().values()))
        return Merged(facts, refusal)
    if refusal is not None:
        raise refusal
    if lost := merged.error.relative:
        name, most = merged.error.worst
        asked.watch.say(f"the cut loses {lost:.3g} of the change, most in {name} ({most:.3g})")
    note = record(recipe, asked.parents, weights, figures, out, asked.earlier)
    return Merged(facts | _write(recipe, terms, merged, out, note))


def _streams(recipe: MergeRecipe, parents: tuple[Parent, ...]) -> bool:
    """Whether whole models become a whole model: those are merged a few rows at a time."""
    uncut = recipe.output.rank == "all" and recipe.output.energy == "all"
    return recipe.output.form == "weights" and uncut and any(each.whole for each in parents)


def _stream(asked: _Asked, weights: Mapping[str, float]) -> dict[str, Any]:
    """Whole models merged into one that is written on the way."""
    recipe, out = asked.recipe, asked.out
    base = _named_base(recipe, next((each.base for each in asked.parents if each.base), None))
    figures = {"formula": explain(dict(weights)), "method": recipe.method.name}
    note = record(recipe, asked.parents, weights, figures, out, asked.earlier)
    found = merge_checkpoints(
        [Part(name, recipe.adapters[name], weight) for name, weight in weights.items()],
        base,
        out,
        how=How(recipe.method.name, settings_of(recipe)),
        vocabulary=recipe.output.vocabulary,
        layers=Layers(tuple((r.match, r.times) for r in recipe.scale), recipe.without),
        finish=Finish(note, recipe.output.fail_above),
    )
    return figures | {"out": str(out), "refused": None, "lost": found.relative}


def _refuse(recipe: MergeRecipe, terms: Terms, merged: Delta, out: Path) -> PeftkitError | None:
    """Why it would not be written."""
    try:
        refuse_to_replace(out, MERGE_FILE)
        if merged.error.relative > recipe.output.fail_above:
            raise RunError(
                f"cutting the ranks loses {merged.error.relative:.3f} of the change, more than "
                f"{recipe.output.fail_above:g}: nothing was saved",
                hint="a higher `--rank`, or none: the exact sum is an adapter too",
            )
        if recipe.output.form == "adapter":
            prepare(merged, DTYPES[recipe.output.dtype])
        else:
            refuse_what_has_no_place(merged)
            _named_base(recipe, terms.base)
    except PeftkitError as problem:
        return problem
    return None


def _disk(recipe: MergeRecipe, terms: Terms, merged: Delta) -> int | None:
    """Bytes that the weights of the result take."""
    if recipe.output.form == "adapter":
        numbers = sum(each.up.numel() + each.down.numel() for each in merged.low.values())
        return (numbers + sum(each.numel() for each in merged.kept.values())) * DTYPES[
            recipe.output.dtype
        ].itemsize
    base = base_of(recipe) or terms.base
    if base is None:
        return None
    return sum(path.stat().st_size for path in set(open_base(base).files.values()))


def _write(
    recipe: MergeRecipe, terms: Terms, merged: Delta, out: Path, note: Mapping[str, Any]
) -> dict[str, Any]:
    if recipe.output.form == "adapter":
        save_delta(merged, str(out), dtype=DTYPES[recipe.output.dtype], note=note)
        return {}
    base = _named_base(recipe, terms.base)
    found = fold_delta(merged, base, out, Finish(note, recipe.output.fail_above))
    return {"lost": found.relative}


def _named_base(recipe: MergeRecipe, said: str | None) -> str:
    if (base := base_of(recipe) or said) is None:
        raise RecipeError("base: no term names one", hint="say which: `--base MODEL`")
    return base
