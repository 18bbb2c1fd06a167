"""What a report knows about a merge: read from its folder, whatever is absent or damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.report import tolerant
from peftkit.report.card_merge import MERGE_FILE
from peftkit.report.facts import Change, Finding, Interval, Missing, Scores
from peftkit.report.reading import change_of, findings_of, scores_of
from peftkit.report.tolerant import Loose, interval, label, number, rows, table, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BASE, MERGED = "base", "merged"
"""What the models are called that are no parents."""
_LONGEST_SENTENCE = 2000
_FILES = {
    MERGE_FILE: "what it was made of cannot be shown",
    "metrics.json": "it was not judged, so there are no figures and no verdict",
    "findings.json": "nothing was diagnosed",
    "samples.json": "there are no samples to read",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A share, such as of a parent's gain, and its interval."""

    share: float
    reach: Interval | None


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """Every model on one set of rows."""

    name: str
    role: str
    metric: str
    rows: float | None
    sources: tuple[str, ...]
    models: Mapping[str, Scores]
    """The base first, the merge last."""
    against_base: Mapping[str, Mapping[str, Change]]
    against_parent: Mapping[str, Change]
    best_parent: str | None
    retained: Part | None
    performance: Mapping[str, Part]
    """As shares of the base."""
    holdout: Loose


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation of a search."""

    numbers: Mapping[str, float]
    figures: Mapping[str, float]
    kept: bool


@dataclass(frozen=True, slots=True)
class Search:
    """How the numbers of the formula were found."""

    facts: Loose
    objective: str
    metric: str
    worsens: bool
    over: Mapping[str, Interval]
    best: Mapping[str, float]
    subject_to: Mapping[str, float]
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What every model makes of one row."""

    set: str
    where: str
    prompt: str
    expected: str | None
    said: tuple[tuple[str, str], ...]
    right: bool | None


@dataclass(frozen=True, slots=True)
class Merge:
    """Everything a report says about one merge."""

    name: str
    plan: Loose
    """How the terms stand to each other."""
    made: Loose
    """What `merge.json` says."""
    recipe: Mapping[str, str]
    """By key, every default filled in."""
    task: str
    helped: str | None
    sentence: str | None
    sets: tuple[JudgedSet, ...]
    left_out: tuple[tuple[str, str], ...]
    search: Search | None
    findings: tuple[Finding, ...]
    samples: tuple[Sample, ...]
    missing: tuple[Missing, ...]


def read_merge(folder: Path) -> Merge:
    """The facts of a merge; what could not be read is in `missing`."""
    found = {name: tolerant.read_json(folder / name) for name in _FILES}
    value = {name: item.value for name, item in found.items()}
    metrics = table(value["metrics.json"])
    verdict, searched = table(metrics.get("verdict")), tolerant.read_json(folder / "search.json")
    made = table(value[MERGE_FILE])
    left_out = table(metrics.get("left_out"))
    sentence = text(verdict.get("sentence"))
    return Merge(
        name=label(made.get("name")) or tolerant.clean(folder.resolve().name),
        plan=table(made.get("preflight")),
        made=made,
        recipe=tolerant.flat(table(made.get("recipe"))),
        task=label(metrics.get("task")) or "causal-lm",
        helped=text(verdict.get("helped")),
        sentence=sentence[:_LONGEST_SENTENCE] if sentence else None,
        sets=tuple(map(_set, rows(metrics.get("sets")))),
        left_out=tuple((name, text(why) or "") for name, why in left_out.items()),
        search=_search(table(searched.value)) if searched.value else None,
        findings=findings_of(rows(value["findings.json"])),
        samples=tuple(map(_sample, rows(value["samples.json"]))),
        missing=tuple(
            Missing(name, item.problem, _FILES[name])
            for name, item in found.items()
            if item.problem is not None
        ),
    )


def _set(raw: Loose) -> JudgedSet:
    models = {name: scores_of(table(each)) for name, each in table(raw.get("models")).items()}
    sources = raw.get("sources")
    return JudgedSet(
        name=label(raw.get("name")),
        role=label(raw.get("role")),
        metric=label(raw.get("metric")) or "loss",
        rows=number(raw.get("rows")),
        sources=tuple(map(label, sources if isinstance(sources, list) else [])),
        models=models,
        against_base={
            name: _changes(table(each)) for name, each in table(raw.get("against_base")).items()
        },
        against_parent=_changes(table(raw.get("against_best_parent"))),
        best_parent=text(raw.get("best_parent")),
        retained=_part(table(raw.get("retained"))),
        performance={
            name: part
            for name, each in table(raw.get("performance")).items()
            if (part := _part(table(each))) is not None
        },
        holdout=table(raw.get("holdout")),
    )


def _changes(raw: Loose) -> dict[str, Change]:
    return {metric: change_of(metric, table(each)) for metric, each in raw.items()}


def _part(raw: Loose) -> Part | None:
    share = number(raw.get("share"))
    return None if share is None else Part(share, interval([raw.get("low"), raw.get("high")]))


def _numbers(raw: object) -> dict[str, float]:
    return dict(_known(table(raw)))


def _known(raw: Loose) -> Iterator[tuple[str, float]]:
    for name, value in raw.items():
        if (found := number(value)) is not None:
            yield name, found


def _search(raw: Loose) -> Search:
    over = {name: interval(each) for name, each in table(raw.get("over")).items()}
    return Search(
        facts=raw,
        objective=label(raw.get("objective")),
        metric=label(raw.get("metric")) or "loss",
        worsens=raw.get("direction") == "worsen",
        over={name: each for name, each in over.items() if each is not None},
        best=_numbers(raw.get("best")),
        subject_to=_numbers(raw.get("subject_to")),
        trials=tuple(
            Trial(
                _numbers(each.get("numbers")),
                _numbers(each.get("figures")),
                each.get("kept") is True,
            )
            for each in rows(raw.get("trials"))
        ),
    )


def _sample(raw: Loose) -> Sample:
    right = raw.get("right")
    return Sample(
        set=label(raw.get("set")),
        where=label(raw.get("where")),
        prompt=text(raw.get("prompt")) or "",
        expected=text(raw.get("expected")),
        said=tuple((name, text(words) or "") for name, words in table(raw.get("said")).items()),
        right=right if isinstance(right, bool) else None,
    )
