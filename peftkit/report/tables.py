"""The facts behind a report as tables of words, the same for the page and for the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.report import series, story, tolerant, wording
from peftkit.report.facts import Scores
from peftkit.report.wording import NOTHING, count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peftkit.report.facts import Change, Leakage, Run, Split

LISTED = 20
"""Rows of a list that are shown; the run folder has the rest."""

_FIGURE = re.compile(rf"[+\u2212]?\d|{NOTHING}$")
_LONGEST_EXCERPT = 300
_SAMPLED_STEPS = 40


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words under a title; the first cell of a row is its header."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @property
    def numeric(self) -> set[int]:
        """The columns, but for the first, that hold figures only: they are set flush right."""
        columns = enumerate(zip(*self.rows, strict=True))
        return {at for at, cells in columns if at and all(map(_FIGURE.match, cells))}


def _present(*tables: Table) -> list[Table]:
    return [table for table in tables if table.rows]


def figures(run: Run) -> list[Table]:
    """Every metric of every model, a table a split; the split that judges comes first."""
    splits = sorted(run.adapted, key=lambda split: split != run.split)
    tables = (_figures(run, split) for split in splits)
    return _present(*tables, *(_clean(run, split) for split in splits))


def _figures(run: Run, split: str) -> Table:
    models = {"Adapter": run.adapted[split]} | {
        wording.sentence_case(name): run.baselines[name].get(split, Scores())
        for name in story.known(run)
    }
    by_key = {change.metric: change for change in story.changes(run, split)}
    keys = wording.in_order({key for scores in models.values() for key in scores.values})
    measured = [
        wording.plural(run.adapted[split].values[unit], unit[:-1])
        for unit in ("rows", "tokens", "bytes")
        if unit in run.adapted[split].values
    ]
    return Table(
        title=wording.sentence_case(split),
        columns=("Metric", *models, "Change from base"),
        rows=tuple(
            (
                wording.metric(key).label,
                *(wording.metric(key).show(scores.values.get(key)) for scores in models.values()),
                _change(by_key.get(key)),
            )
            for key in keys
        ),
        note=f"Measured on {', '.join(measured)}." if measured else "",
    )


def _clean(run: Run, split: str) -> Table:
    """The figures of a split that leaked, on all its rows and on those that did not."""
    with_all = {change.metric: change for change in story.changes(run, split)}
    rows = [
        (
            wording.metric(clean.metric).label,
            wording.metric(clean.metric).show(_adapted(with_all.get(clean.metric))),
            wording.metric(clean.metric).show(clean.adapted),
            _change(with_all.get(clean.metric)),
            _change(clean),
        )
        for clean in run.clean_changes.get(split, ())
    ]
    columns = ("Metric", "All rows", "Not leaked", "Change, all rows", "Change, not leaked")
    return Table(
        f"{wording.sentence_case(split)} without the rows that leaked", columns, tuple(rows)
    )


def _adapted(change: Change | None) -> float | None:
    return change.adapted if change else None


def _change(change: Change | None) -> str:
    if change is None:
        return NOTHING
    shown = wording.metric(change.metric).show_change(change.change)
    return f"{shown} ({story.reach(change)})" if change.interval else shown


def remembered(run: Run) -> list[Table]:
    """Loss on what must not be forgotten, before and after."""
    rows = []
    for item in run.remembered:
        known = item.before is not None and item.after is not None
        change = (item.after or 0) - (item.before or 0) if known else None
        shown = wording.metric("loss").show_change(change)
        said = "" if change is None else " worse" if change > 0 else " better" if change else ""
        row = (item.source, wording.loss(item.before), wording.loss(item.after), shown + said)
        rows.append(row)
    return _present(Table("", ("Source", "Before", "After", "Change of loss"), tuple(rows)))


def curve(run: Run) -> Table:
    """Some forty steps evenly apart, and every step that was evaluated."""
    evaluated = {item.step: item for item in run.evaluations}
    width = series.window(len(run.steps))
    mean = series.smoothed([step.loss for step in run.steps], width)
    taken = {run.steps[at].step for at in series.spread(len(run.steps), _SAMPLED_STEPS)}
    by_step = {step.step: (step, value) for step, value in zip(run.steps, mean, strict=True)}
    rows = []
    for number in sorted(taken | _some(sorted(evaluated))):
        step, smooth = by_step.get(number, (None, None))
        rows.append(
            (
                count(number),
                wording.loss(step.loss if step else None),
                wording.loss(smooth),
                wording.loss(evaluated[number].loss if number in evaluated else None),
                wording.figure(step.learning_rate if step else None),
                wording.figure(step.grad_norm if step else None),
            )
        )
    columns = ("Step", "Training loss", f"Mean of {width}", "Validation loss")
    note = f"{len(rows):,} of {wording.plural(len(run.steps), 'step')}; all are in `steps.jsonl`."
    return Table(
        "Losses by step",
        (*columns, "Learning rate", "Gradient norm"),
        tuple(rows),
        note if len(run.steps) > _SAMPLED_STEPS else "",
    )


def _some(evaluated: list[int]) -> set[int]:
    return {evaluated[at] for at in series.spread(len(evaluated), _SAMPLED_STEPS)}


def _trained(split: Split) -> str:
    if not split.tokens or split.trained_tokens is None:
        return count(split.trained_tokens)
    return f"{count(split.trained_tokens)} ({wording.share(split.trained_tokens / split.tokens)})"


_SPLIT_ROWS: tuple[tuple[str, Callable[[Split], str]], ...] = (
    ("Rows", lambda split: count(split.rows)),
    ("Of these, changed copies", lambda split: count(split.copies)),
    ("Tokens", lambda split: count(split.tokens)),
    ("Trained tokens", _trained),
    ("Longest row", lambda split: count(split.longest)),
    ("Cut", lambda split: count(split.cut)),
    ("Dropped", lambda split: count(split.dropped)),
    ("Skipped", lambda split: count(len(split.skipped))),
    ("Packing fill", lambda split: wording.share(split.fill)),
)


def data(run: Run) -> list[Table]:
    """What each split holds, where it came from, what was skipped and what leaks."""
    if not run.splits:
        return []
    rows = [(label, *(show(split) for split in run.splits)) for label, show in _SPLIT_ROWS]
    said = tuple(row for row in rows if any(cell != NOTHING for cell in row[1:]))
    names = [wording.sentence_case(split.name) for split in run.splits]
    sources = [
        (source, split.name, count(rows_), count(tokens))
        for split in run.splits
        for source, rows_, tokens in split.sources
    ]
    return _present(
        Table("Splits", ("", *names), said),
        _listed("Sources", ("Source", "Split", "Rows", "Tokens"), sources),
        _listed("Skipped rows", ("Where", "Why"), [row for s in run.splits for row in s.skipped]),
        _leaking(run.leakage),
        _trained_on(run),
        _by_origin(run),
    )


def _trained_on(run: Run) -> Table:
    """How much of the run each source was, where there are several or it is known who wrote it."""
    telling = len(run.seen) > 1 or any(each.origin != "unknown" for each in run.seen)
    rows = [
        (
            each.source,
            each.origin,
            count(each.rows),
            count(each.tokens),
            wording.share(each.share),
            wording.share(each.asked),
            wording.figure(each.times, 3),
        )
        for each in run.seen
        if telling
    ]
    columns = ("Source", "Origin", "Rows", "Tokens", "Of the tokens", "Asked for", "Times seen")
    return _listed("Trained on", columns, rows)


def _by_origin(run: Run) -> Table:
    rows = [
        (
            each.origin,
            each.split,
            count(each.rows),
            wording.metric(each.metric).label,
            wording.metric(each.metric).show(each.base),
            wording.metric(each.metric).show(each.adapted),
        )
        for each in run.by_origin
    ]
    return _listed("By origin", ("Origin", "Split", "Rows", "Metric", "Before", "After"), rows)


def _leaking(leakage: Leakage | None) -> Table:
    pairs = leakage.pairs if leakage else ()
    rows = [
        (
            pair.kind,
            wording.figure(pair.similarity, 3),
            pair.left,
            pair.right,
            wording.clipped(pair.text, _LONGEST_EXCERPT),
        )
        for pair in pairs
    ]
    return _listed("Rows in two splits", ("Kind", "Similarity", "Row", "Same as", "Text"), rows)


def _listed(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    note = f"{LISTED} of {len(rows):,}; all are in `data.json`." if len(rows) > LISTED else ""
    kept = tuple(
        tuple(wording.clipped(cell, _LONGEST_EXCERPT) for cell in row) for row in rows[:LISTED]
    )
    return Table(title, columns, kept, note)


def leakage_sentence(run: Run) -> str:
    """Whether rows of one split are in another."""
    if run.leakage is None:
        return "Whether rows of one split are in another was not checked."
    exact, near = run.leakage.exact, run.leakage.near
    if not exact and not near:
        return "No row of one split was found in another."
    rows = wording.plural(exact, "row is", "rows are") if exact else "No row is"
    return f"{rows} in two splits exactly, {count(near)} nearly."


def plan(run: Run) -> list[Table]:
    """What was planned, beside what it took."""
    planned, speed = run.plan, run.speed
    if planned is None:
        return []
    rows = (
        ("Parameters", count(planned.parameters)),
        ("Trained parameters", f"{count(planned.trainable)} ({wording.share(planned.share)})"),
        ("Training rows", count(planned.rows)),
        ("Steps", count(planned.steps)),
        ("Epochs", wording.figure(planned.epochs)),
        ("Rows a step", count(planned.rows_per_step)),
        ("Tokens a step", count(planned.tokens_per_step)),
        ("Tokens an epoch", count(planned.tokens_per_epoch)),
        ("Memory while training", wording.size(planned.memory_training)),
        ("Memory while evaluating", wording.size(planned.memory_evaluation)),
        ("Disk", wording.size(planned.disk_bytes)),
    )
    took = (
        ("Steps done", count(run.steps[-1].step) if run.steps else NOTHING),
        ("Time", wording.duration(speed.seconds)),
        ("Processor time", wording.duration(speed.cpu_seconds)),
        ("Tokens", count(speed.tokens)),
        ("Tokens a second", count(speed.tokens_per_second)),
        ("Peak memory", wording.size(speed.peak_memory_bytes)),
        ("Adapter on disk", wording.size(run.adapter_bytes)),
    )
    return _present(
        Table("Planned", (), tuple(row for row in rows if not row[1].startswith(NOTHING))),
        Table("Measured", (), tuple(row for row in took if row[1] != NOTHING)),
    )


_ENVIRONMENT = (
    ("base", "Base"),
    ("data", "Data by digest"),
    ("versions", "Versions"),
    ("machine", "Machine"),
    ("choices", "Choices made on this machine"),
)


def environment(run: Run) -> list[Table]:
    """What the run was made with: base and data by digest, versions, machine, choices."""
    sections = [Table(title, (), _leaves(run.lock.get(key))) for key, title in _ENVIRONMENT]
    ours = {key: run.lock[key] for key in ("peftkit", "recipe") if key in run.lock}
    rest = {
        key: value
        for key, value in run.lock.items()
        if key not in ours and key not in dict(_ENVIRONMENT)
    }
    return _present(Table("Run", (), _leaves({**ours, **rest})), *sections)


def _leaves(value: object) -> tuple[tuple[str, ...], ...]:
    leaves = tolerant.flat(tolerant.table(value))
    return tuple(
        (_label(key), wording.clipped(_plain(leaf), _LONGEST_EXCERPT))
        for key, leaf in leaves.items()
    )


def _label(key: str) -> str:
    """Names of files and packages stay as they are; peftkit's own keys become words."""
    return key.replace("_gib", " (GiB)").replace("_", " ") if "." not in key else key


def _plain(leaf: str) -> str:
    if leaf.isascii() and leaf.isdecimal() and len(leaf) < 16:
        return count(int(leaf))
    return {"null": "none", "true": "yes", "false": "no"}.get(leaf, leaf)


def resolved(run: Run) -> list[Table]:
    """The recipe with every default filled in."""
    rows = tuple(
        (key, wording.clipped(value, _LONGEST_EXCERPT)) for key, value in run.resolved.items()
    )
    return _present(Table("Every key", ("Key", "Value"), rows))
