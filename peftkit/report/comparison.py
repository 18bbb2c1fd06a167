"""Several runs side by side: what their recipes differ in, how each did, their losses overlaid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.report import charts, series, story, wording
from peftkit.report.charts import Chart, Line
from peftkit.report.facts import Scores
from peftkit.report.tables import Table
from peftkit.report.wording import NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.report.facts import Change, Run

TONES = 6
"""Ways a line can look; more runs than this share them, and the legend says which is which."""

_LONGEST_VALUE = 120


@dataclass(frozen=True, slots=True)
class Named:
    """A run, and a name that no other run on the page has."""

    label: str
    run: Run
    headline: story.Headline


def named(runs: Sequence[Run]) -> list[Named]:
    """The runs in the given order; those of one name are told apart by folder, then by number."""
    names = [run.name for run in runs]
    labels = [
        name if names.count(name) == 1 or name == run.folder else f"{name} in {run.folder}"
        for name, run in zip(names, runs, strict=True)
    ]
    unique = [
        label if labels.count(label) == 1 else f"{label} ({labels[: at + 1].count(label)})"
        for at, label in enumerate(labels)
    ]
    return [Named(label, run, story.headline(run)) for label, run in zip(unique, runs, strict=True)]


def summary(runs: Sequence[Named]) -> str:
    """How many runs there are and how many helped."""
    helped = sum(item.headline.helped == "yes" for item in runs)
    return f"{helped:,} of {wording.plural(len(runs), 'run')} clearly helped."


def figures(runs: Sequence[Named]) -> Table:
    """One row a run: verdict, every compared metric after training, and what it cost."""
    changes = [
        {change.metric: change for change in story.changes(item.run, item.run.split)}
        for item in runs
    ]
    keys = wording.in_order({key for known in changes for key in known})
    rows = [
        (
            item.label,
            item.headline.answer,
            story.judged_on(item.run),
            *(_measured(item.run, key, known.get(key)) for key in keys),
            wording.count(item.run.plan.trainable) if item.run.plan else NOTHING,
            wording.count(item.run.steps[-1].step) if item.run.steps else NOTHING,
            wording.duration(item.run.speed.seconds),
        )
        for item, known in zip(runs, changes, strict=True)
    ]
    labels = [wording.metric(key).label for key in keys]
    return Table(
        "",
        ("Run", "Helped", "Judged on", *labels, "Trained parameters", "Steps", "Time"),
        tuple(rows),
        f"Under a value the {story.CONFIDENCE} interval of its change from the run's own base.",
    )


def _measured(run: Run, key: str, change: Change | None) -> str:
    value = run.adapted.get(run.split, Scores()).values.get(key)
    shown = wording.metric(key).show(value)
    return f"{shown}\n{story.reach(change)}" if change and change.interval else shown


def differences(runs: Sequence[Named]) -> Table:
    """The keys of the resolved recipes that are not the same in all runs."""
    keys = list(dict.fromkeys(key for item in runs for key in item.run.resolved))
    rows = []
    for key in keys:
        values = [item.run.resolved.get(key) for item in runs]
        if key != "name" and len(set(values)) > 1:
            said = (NOTHING if value is None else value for value in values)
            rows.append((key, *(wording.clipped(value, _LONGEST_VALUE) for value in said)))
    return Table("", ("Key", *(item.label for item in runs)), tuple(rows))


def curves(runs: Sequence[Named]) -> list[Chart]:
    """Smoothed training losses of all runs on one chart, validation losses on another."""
    summary_words = " ".join(
        f"{item.label}: {said}" for item in runs if (said := story.curve_summary(item.run))
    )
    training = [line for at, item in enumerate(runs) for line in _training(at, item)]
    validation = [line for at, item in enumerate(runs) for line in _validation(at, item)]
    return [
        Chart("training", "Training loss by step", summary_words, tuple(training), wording.loss),
        Chart("validation", "Validation loss by step", "", tuple(validation), wording.loss),
    ]


def _training(at: int, item: Named) -> list[Line]:
    raw = [step.loss for step in item.run.steps]
    mean = series.smoothed(raw, series.window(len(raw)))
    steps = tuple(step.step for step in item.run.steps)
    return [Line(item.label, steps, tuple(mean), "bold", tone=at % TONES)] if steps else []


def _validation(at: int, item: Named) -> list[Line]:
    if not item.run.evaluations:
        return []
    steps = tuple(found.step for found in item.run.evaluations)
    losses = tuple(found.loss for found in item.run.evaluations)
    intervals = tuple(found.interval for found in item.run.evaluations)
    mark = charts.MARKS[at % len(charts.MARKS)]
    return [Line(item.label, steps, losses, "points", mark, at % TONES, intervals)]
