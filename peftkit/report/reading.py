"""Read a run folder into facts, each file once, tolerant of what is absent or damaged."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from peftkit.report import tolerant
from peftkit.report.facts import (
    SEVERITIES,
    Change,
    Evaluation,
    Finding,
    Leakage,
    Missing,
    OfOrigin,
    Pair,
    Plan,
    RangeTest,
    Remembered,
    Run,
    Sample,
    Scores,
    Seen,
    Speed,
    Spike,
    Split,
    Stage,
    Step,
)
from peftkit.report.record import FINDER
from peftkit.report.tolerant import Found, Loose, interval, label, number, rows, table, text, whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LONGEST_SENTENCE = 1000
CLEAN = "_without_leaks"
"""What stands behind a split's name where figures are of the rows that did not leak."""

_FILES = {
    "recipe.yaml": "the recipe as written cannot be shown",
    "recipe.resolved.json": "the recipe with its defaults cannot be shown",
    "lock.json": "the environment cannot be shown",
    "plan.json": "what was planned cannot be shown",
    "data.json": "the data cannot be described",
    "steps.jsonl": "there is no training loss to draw",
    "evaluations.jsonl": "there is no validation loss to draw",
    "metrics.json": "there are no figures and no verdict",
    "findings.json": "nothing was diagnosed",
    "samples.json": "there are no samples to read",
}


def read_run(run: Path) -> Run:
    """The facts of a run folder; what could not be read is in `missing`."""
    found = {name: _read(run / name) for name in _FILES}
    value = {name: item.value for name, item in found.items()}
    metrics = table(value["metrics.json"])
    verdict = table(metrics.get("verdict"))
    resolved = table(value["recipe.resolved.json"])
    data = table(value["data.json"])
    taken = table(metrics.get("steps"))
    kept = table(taken.get("kept"))
    return Run(
        name=label(resolved.get("name")) or tolerant.clean(run.resolve().name),
        folder=tolerant.clean(run.resolve().name),
        recipe=text(value["recipe.yaml"]),
        resolved=tolerant.flat(resolved),
        lock=table(value["lock.json"]),
        plan=_plan(table(value["plan.json"])),
        splits=tuple(_split(name, table(data[name])) for name in _splits(data)),
        leakage=_leakage(table(data.get("leakage"))),
        seen=_seen(table(metrics.get("seen")), rows(data.get("mixture"))),
        by_origin=tuple(_by_origin(table(metrics.get("by_origin")))),
        data=data,
        steps=_steps(rows(value["steps.jsonl"])),
        finder=_range_test(run / FINDER),
        evaluations=_evaluations(rows(value["evaluations.jsonl"])),
        helped=text(verdict.get("helped")),
        sentence=_sentence(verdict),
        adapted=_by_split(metrics),
        baselines={
            name: _baseline(table(item)) for name, item in table(metrics.get("baselines")).items()
        },
        changes=_changes(table(metrics.get("difference"))),
        clean_changes=_changes(
            {
                name.removesuffix(CLEAN): table(item).get("difference")
                for name, item in metrics.items()
                if name.endswith(CLEAN)
            }
        ),
        remembered=tuple(map(_remembered, rows(metrics.get("remember")))),
        speed=Speed(**_numbers(Speed, table(metrics.get("speed")))),
        findings=findings_of(rows(value["findings.json"])),
        samples=tuple(map(_sample, rows(value["samples.json"]))),
        adapter_bytes=_weights(run / "adapter"),
        missing=tuple(
            Missing(name, item.problem, _FILES[name] if item.value is None else "the rest is used")
            for name, item in found.items()
            if item.problem is not None
        ),
        stages=tuple(map(_stage, rows(metrics.get("stages")))),
        stage_losses={
            label(name): {label(each): number(loss) for each, loss in table(found).items()}
            for name, found in table(metrics.get("losses")).items()
        },
        final_needs=_names(table(metrics.get("final")).get("needs")),
        spikes=tuple(_spikes(rows(metrics.get("spikes")))),
        drift=_figures(table(metrics.get("drift")).get("layers")),
        stopped=text(table(taken.get("stopped")).get("sentence")),
        kept=label(kept.get("weights")) or "last",
        kept_steps=_whole_numbers(kept.get("steps")),
    )


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(label, value)) if isinstance(value, list) else ()


def _stage(raw: Loose) -> Stage:
    speed = table(raw.get("speed"))
    return Stage(
        name=label(raw.get("name")),
        start=label(raw.get("start_from")),
        how=label(raw.get("as")),
        task=label(raw.get("task")),
        method=label(raw.get("method")),
        learning_rate=number(raw.get("learning_rate")),
        tokens=number(speed.get("tokens")),
        seconds=number(speed.get("seconds")),
        before=number(table(raw.get("before")).get("loss")),
        after=number(table(raw.get("after")).get("loss")),
        verdict=text(table(raw.get("verdict")).get("sentence")) or "",
    )


def _figures(raw: object) -> dict[str, float]:
    found = {name: number(value) for name, value in table(raw).items()}
    return {name: value for name, value in found.items() if value is not None}


def _whole_numbers(raw: object) -> tuple[int, ...]:
    found = map(whole, raw if isinstance(raw, list) else ())
    return tuple(value for value in found if value is not None)


def _spikes(lines: tuple[Loose, ...]) -> Iterator[Spike]:
    for raw in lines:
        step, figure = whole(raw.get("step")), number(raw.get("figure"))
        if step is not None and figure is not None:
            yield Spike(step, label(raw.get("kind")), figure)


def _sentence(verdict: Loose) -> str | None:
    said = text(verdict.get("sentence"))
    return None if said is None else said[:_LONGEST_SENTENCE]


def _read(path: Path) -> Found:
    if path.suffix == ".jsonl":
        return tolerant.read_lines(path)
    return tolerant.read_json(path) if path.suffix == ".json" else tolerant.read_text(path)


def _numbers(kind: type[Any], raw: Loose) -> dict[str, float | None]:
    return {item.name: number(raw.get(item.name)) for item in fields(kind)}


def _plan(raw: Loose) -> Plan | None:
    if not raw:
        return None
    memory = table(raw.get("memory_bytes"))
    nested = {f"memory_{use}": memory.get(use) for use in ("training", "evaluation")}
    return Plan(**_numbers(Plan, {**raw, **nested}))


def _splits(data: Loose) -> list[str]:
    first = [name for name in ("train", "validation", "test") if table(data.get(name))]
    rest = [name for name in data if name not in first and _is_split(table(data[name]))]
    return first + sorted(rest)


def _is_split(raw: Loose) -> bool:
    return all(number(raw.get(key)) is not None for key in ("rows", "tokens"))


def _split(name: str, raw: Loose) -> Split:
    return Split(
        name=name,
        rows=number(raw.get("rows")),
        tokens=number(raw.get("tokens")),
        trained_tokens=number(raw.get("trained_tokens")),
        longest=number(raw.get("longest")),
        cut=number(raw.get("cut")),
        dropped=number(raw.get("dropped")),
        fill=number(raw.get("fill")),
        copies=number(table(raw.get("augmented")).get("rows")) or None,
        skipped=tuple(
            (label(row.get("where")), text(row.get("why")) or "")
            for row in rows(raw.get("skipped"))
        ),
        sources=tuple(
            (label(row.get("source")), number(row.get("rows")), number(row.get("tokens")))
            for row in rows(raw.get("sources"))
        ),
    )


def _leakage(raw: Loose) -> Leakage | None:
    if raw.get("exact") is None:  # not described, or not looked for
        return None
    return Leakage(
        exact=whole(raw.get("exact")) or 0,
        near=whole(raw.get("near")) or 0,
        pairs=tuple(
            Pair(
                kind=label(row.get("kind")),
                similarity=number(row.get("similarity")),
                left=label(row.get("left")),
                right=label(row.get("right")),
                text=text(row.get("text")) or "",
            )
            for row in rows(raw.get("pairs"))
        ),
    )


def _seen(raw: Loose, mixture: tuple[Loose, ...]) -> tuple[Seen, ...]:
    asked = {label(each.get("source")): number(each.get("share_of_tokens")) for each in mixture}
    return tuple(
        Seen(
            source=label(each.get("source")),
            origin=label(each.get("origin")),
            rows=number(each.get("rows")),
            tokens=number(each.get("tokens")),
            share=number(each.get("share_of_tokens")),
            asked=asked.get(label(each.get("source"))),
            times=number(each.get("times")),
        )
        for each in rows(raw.get("sources"))
    )


def _by_origin(raw: Loose) -> Iterator[OfOrigin]:
    for split, found in raw.items():
        for each in rows(found):
            base, adapted = table(each.get("base")), table(each.get("adapted"))
            for metric in adapted:
                yield OfOrigin(
                    split=split,
                    origin=label(each.get("origin")),
                    rows=number(each.get("rows")),
                    metric=metric,
                    base=number(base.get(metric)),
                    adapted=number(adapted.get(metric)),
                )


def _steps(lines: tuple[Loose, ...]) -> tuple[Step, ...]:
    """Steps in order; where a resumed run wrote one again, the later line holds."""
    by_step: dict[int, Step] = {}
    for raw in lines:
        step = whole(raw.get("step"))
        if step is not None and step >= 0:
            by_step[step] = Step(
                step=step,
                loss=number(raw.get("loss")),
                grad_norm=number(raw.get("grad_norm")),
                learning_rate=number(raw.get("learning_rate")),
                penalty=tolerant.numbers(raw.get("penalty")),
            )
    return tuple(by_step[step] for step in sorted(by_step))


def _range_test(path: Path) -> RangeTest | None:
    """The test of a run that looked for its learning rate, where it can be read."""
    found = table(tolerant.read_json(path).value) if path.exists() else {}
    trials = rows(found.get("trials"))
    rates = [rate for row in trials if (rate := number(row.get("learning_rate"))) and rate > 0]
    suggestion = number(found.get("suggestion"))
    if not suggestion or not rates or len(rates) < len(trials):
        return None
    return RangeTest(
        suggestion=suggestion,
        rates=tuple(rates),
        losses=tuple(number(row.get("loss")) for row in trials),
        smoothed=tuple(number(row.get("smoothed")) for row in trials),
    )


def _evaluations(lines: tuple[Loose, ...]) -> tuple[Evaluation, ...]:
    by_step: dict[int, Evaluation] = {}
    for raw in lines:
        step, loss = whole(raw.get("step")), number(raw.get("loss"))
        if step is not None and step >= 0 and loss is not None:
            general = _figures(raw.get("remember"))
            by_step[step] = Evaluation(step, loss, interval(raw.get("interval")), general)
    return tuple(by_step[step] for step in sorted(by_step))


def scores_of(raw: Loose) -> Scores:
    """The figures of one model on one set."""
    values = {key: number(item) for key, item in raw.items()}
    intervals = {key: interval(item) for key, item in table(raw.get("intervals")).items()}
    return Scores(
        values={key: item for key, item in values.items() if item is not None},
        intervals={key: item for key, item in intervals.items() if item is not None},
    )


def _by_split(raw: Loose) -> dict[str, Scores]:
    return {name: scores_of(table(raw[name])) for name in ("validation", "test") if raw.get(name)}


def _baseline(raw: Loose) -> dict[str, Scores]:
    """A baseline's figures: those on validation lie flat, those on test under `test`."""
    scores = {"validation": scores_of(raw), "test": scores_of(table(raw.get("test")))}
    return {name: item for name, item in scores.items() if item.values}


def _changes(raw: Loose) -> dict[str, tuple[Change, ...]]:
    return {
        split: tuple(change_of(key, table(item)) for key, item in table(metrics).items())
        for split, metrics in raw.items()
    }


def change_of(key: str, raw: Loose) -> Change:
    """What happened to one metric, as `compare` wrote it."""
    return Change(
        metric=key,
        base=number(raw.get("base")),
        adapted=number(raw.get("adapted")),
        change=number(raw.get("change")),
        interval=interval([raw.get("low"), raw.get("high")]),
    )


def _remembered(raw: Loose) -> Remembered:
    return Remembered(
        source=label(raw.get("source")),
        before=number(table(raw.get("before")).get("loss")),
        after=number(table(raw.get("after")).get("loss")),
    )


def findings_of(lines: tuple[Loose, ...]) -> tuple[Finding, ...]:
    """Findings, worst first; a severity nobody has heard of is a note."""
    found = []
    for raw in lines:
        severity = label(raw.get("severity"))
        found.append(
            Finding(
                id=label(raw.get("id")) or "unnamed",
                severity=severity if severity in SEVERITIES else "note",
                figure=number(raw.get("figure")),
                threshold=number(raw.get("threshold")),
                sentence=text(raw.get("sentence")) or "",
                advice=text(raw.get("advice")) or "",
            )
        )
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _sample(raw: Loose) -> Sample:
    right = raw.get("right")
    return Sample(
        where=label(raw.get("where")),
        prompt=text(raw.get("prompt")) or "",
        expected=text(raw.get("expected")),
        before=text(raw.get("before")),
        after=text(raw.get("after")),
        right=right if isinstance(right, bool) else None,
    )


def _weights(folder: Path) -> int | None:
    """Bytes of the adapter's weights; what else lies there may be written after the report."""
    try:
        sizes = [item.stat().st_size for item in folder.iterdir() if item.suffix == ".safetensors"]
    except OSError:
        return None
    return sum(sizes) if sizes else None
