"""Every merge is judged: base, parents and merge on the same rows, with one base loaded."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.adapters.task_file import PLAIN
from peftkit.base.load import load_base
from peftkit.base.machine import choose_device
from peftkit.data.task import WRITES
from peftkit.evaluate.generation import answer_all, prompt_of
from peftkit.evaluate.holdout import disagree
from peftkit.evaluate.retention import BASE, MERGED, retain
from peftkit.pipeline.judge import CONTINUATION_TOKENS, opening
from peftkit.pipeline.samples import choose_samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from peftkit.evaluate.evaluation import Evaluation
    from peftkit.evaluate.generation import Answer
    from peftkit.merge.delta import Delta
    from peftkit.pipeline.bench import Bench, Rows
    from peftkit.pipeline.watch import Watch


@dataclass(frozen=True, slots=True)
class Judgment:
    """What was measured, as the files of the result say it."""

    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Model:
    """What one model did on every set, and what it wrote."""

    sets: dict[str, Evaluation]
    searched: dict[str, Evaluation]
    said: dict[str, Sequence[Answer]]


def judge_merge(
    bench: Bench,
    parents: Mapping[str, Delta | Path],
    numbers: Mapping[str, float],
    merged: Delta | Path,
    watch: Watch,
    *,
    seed: int = 0,
) -> Judgment:
    """The merge beside its base and each parent, on every set of the bench.

    Args:
        bench: the base and the sets.
        parents: the terms as they are when they act alone, or the folders of whole models.
        numbers: what each is multiplied by; one that is taken away is nothing to be kept.
        merged: the merge as it was saved, or the folder of a model that was.
        watch: is told how far it is.
        seed: of the resampling.
    """
    strange = {name: why for name, d in parents.items() if (why := _other_head(bench, d))}
    names = [BASE, *(name for name in parents if name not in strange), MERGED]
    found: dict[str, _Model] = {}
    with watch.progress(len(names), "judging models") as progress:
        for number, name in enumerate(names, 1):
            one = merged if name == MERGED else parents.get(name)
            with _standing(bench, one) as standing:
                found[name] = _evaluate(standing, searched=name in (BASE, MERGED))
            progress(number)
    helping = [name for name, number in numbers.items() if number > 0]
    sets = [_compare(rows, found, helping, seed) for rows in bench.sets]
    metrics = {"task": bench.task.name, "sets": sets, "left_out": strange}
    return Judgment(metrics, [s for rows in bench.sets for s in _samples(bench, rows, found)])


def _other_head(bench: Bench, parent: Delta | Path) -> str:
    """Why a parent cannot be judged on these rows; empty where it can."""
    if isinstance(parent, Path):
        return ""
    own = {"labels": [], "head": None} | (parent.facts.get("task") or PLAIN)
    if own["task"] != bench.task.name:
        return f"it was trained for {own['task']}, and the rows ask for {bench.task.name}"
    if tuple(own["labels"]) != bench.section.names:
        return "its head has other labels than that of the merge"
    return ""


@contextmanager
def _standing(bench: Bench, one: Delta | Path | None) -> Iterator[Bench]:
    """The bench with a change acting on its base, or with another model in its place."""
    if isinstance(one, Path):
        section = bench.section.model_copy(update={"model": str(one), "revision": "main"})
        yield replace(bench, base=load_base(section, device=choose_device()))
        return
    terms = {} if one is None else {"one": one}
    with bench.acting(terms) as dials:
        dials.turn(dict.fromkeys(terms, 1.0), one)
        yield bench


def _evaluate(bench: Bench, *, searched: bool) -> _Model:
    sets = {rows.name: bench.measure(rows.examples, answers=True) for rows in bench.sets}
    return _Model(
        sets,
        {
            rows.name: bench.measure(rows.searched, answers=False)
            for rows in bench.sets
            if searched and rows.searched
        },
        {rows.name: sets[rows.name].answers or _go_on(bench, rows) for rows in bench.sets},
    )


def _go_on(bench: Bench, rows: Rows) -> Sequence[Answer]:
    """How the model goes on from the first rows, where it writes at all."""
    if bench.task.name not in WRITES:
        return ()
    prompts = [
        prompt_of(each) if each.prompt_tokens else opening(each)
        for each in rows.examples[: bench.how.samples]
    ]
    return answer_all(
        bench.base.model,
        prompts,
        bench.base.tokenizer,
        stops=bench.stops,
        room=CONTINUATION_TOKENS,
    )


def _compare(
    rows: Rows, found: Mapping[str, _Model], helping: list[str], seed: int
) -> dict[str, Any]:
    models = {name: model.sets[rows.name] for name, model in found.items()}
    said: dict[str, Any] = {"name": rows.name, "role": rows.role, "sources": list(rows.sources)}
    said |= retain(models, helping, seed=seed)
    if rows.searched:
        before, after = ((found[name].searched[rows.name], models[name]) for name in (BASE, MERGED))
        searched, held = zip(before, after, strict=True)
        said["holdout"] = {"searched_rows": len(rows.searched)}
        said["holdout"] |= disagree(searched, held, seed=seed)
    return said


def _samples(bench: Bench, rows: Rows, found: Mapping[str, _Model]) -> list[dict[str, Any]]:
    """What each model makes of some rows: wrong ones first where there is right and wrong."""
    right = found[MERGED].sets[rows.name].right
    said = {name: model.said[rows.name] for name, model in found.items()}
    if right is None:
        places = list(range(len(said[MERGED])))
    else:
        places = choose_samples(right, bench.how.samples)
    decode = partial(bench.base.tokenizer.decode, skip_special_tokens=True)
    return [
        {
            "set": rows.name,
            "where": example.where,
            "prompt": example.prompt or decode(opening(example)),
            "expected": example.answer,
            "said": {name: answers[place].text for name, answers in said.items()},
            "right": None if right is None else bool(right[place]),
        }
        for place in places
        for example in [rows.examples[place]]
    ]
