"""What a report says first, once for the page and the text: verdict, figures, curves, baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.report import charts, course, series, wording
from peftkit.report.charts import Chart, Line
from peftkit.report.facts import Change, Scores
from peftkit.report.range_test import draw_range_test
from peftkit.report.tolerant import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peftkit.report.facts import Finding, Run, Step

    Show = Callable[[float | None], str]
    """How a figure is written."""

CONFIDENCE = "95 %"

_ANSWERS = {
    "yes": ("Yes", "Yes, it helped"),
    "no": ("No", "No, it did not help"),
    "unclear": ("Unclear", "It is not clear whether it helped"),
}
_LONGEST_TITLE = 60

BASELINES = {
    "base": "Base, untouched",
    "probe": "Linear head only",
    "scratch": "From scratch",
    "majority": "Most common answer",
    "full": "All parameters",
}
"""What each baseline is, in the order they are shown."""
STACKED = "Base and what was trained before"
"""What the base is where the new adapter stands on an earlier one."""

_METHODS = {
    "lora": "LoRA",
    "ia3": "IA\u00b3",
    "vera": "VeRA",
    "oft": "OFT",
    "bitfit": "BitFit",
    "layernorm": "layer norms",
    "top": "top blocks",
    "bottleneck": "bottleneck adapters",
    "prefix": "prefix tuning",
    "prompt": "prompt tuning",
    "p-tuning": "P-tuning",
}

OURS = "Adapter"
LINES = 6
"""Most lines of a chart that can be told apart."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The answer to "did it help?": a short title, and the sentence with the figures."""

    answer: str
    helped: str
    title: str
    lead: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric before and after, and how sure the change is."""

    label: str
    before: str
    after: str
    change: str
    reach: str
    judgment: str
    strip: str | None


@dataclass(frozen=True, slots=True)
class Fact:
    """One figure about the run itself."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One model's value of a metric, as words and as a bar."""

    name: str
    value: str
    reach: str
    drawing: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of the adapted model beside every baseline."""

    label: str
    note: str
    bars: tuple[Bar, ...]


def headline(run: Run) -> Headline:
    """Whether the adapter helped, in the words of the verdict; without one, why there is none."""
    if run.sentence is None:
        lead = f"{wording.sentence_case(_so_far(run))}, and it has not been evaluated."
        return Headline("No verdict", "none", "No verdict yet", lead, lead)
    helped = run.helped if run.helped in _ANSWERS else "unclear"
    answer, title = _ANSWERS[helped]
    head, colon, tail = run.sentence.partition(": ")
    lead = run.sentence
    if colon and tail.strip() and len(head) <= _LONGEST_TITLE:
        title = wording.sentence_case(head) if helped == "unclear" else f"{answer}, {head}"
        lead = tail
    lead = wording.stopped(wording.sentence_case(lead.strip()))
    return Headline(answer, helped, title, lead, run.sentence)


def _so_far(run: Run) -> str:
    planned = run.plan.steps if run.plan else None
    done = run.steps[-1].step if run.steps else 0
    if planned and done < planned:
        return f"training stopped after {done:,} of {wording.plural(planned, 'step')}"
    return f"training took {wording.plural(done, 'step')}" if done else "training has not begun"


def byline(run: Run) -> str:
    """What was done, in one line: method, rank and base."""
    method = run.resolved.get("adapter.method")
    method = _METHODS.get(method or "", method)
    rank = run.resolved.get("adapter.rank")
    base = run.resolved.get("base.model")
    parts = [
        " ".join(filter(None, [method, f"of rank {rank}" if rank and method else ""])),
        f"on {base}" if base else "",
    ]
    return " ".join(filter(None, parts))


def findings_line(run: Run) -> str:
    """How many findings ask for attention: `1 warning, 2 notes`."""
    return count_findings(run.findings)


def count_findings(findings: Sequence[Finding]) -> str:
    """How many of them ask for attention."""
    if not findings:
        return "Nothing was diagnosed"
    counts = [
        (sum(finding.severity == severity for finding in findings), severity)
        for severity in ("problem", "warning", "note")
    ]
    said = [wording.plural(found, severity) for found, severity in counts if found]
    return ", ".join(said) or f"All {wording.plural(len(findings), 'check')} passed"


def changes(run: Run, split: str) -> list[Change]:
    """The change of every metric measured before and after; without intervals where none were."""
    if run.changes.get(split):
        by_key = {change.metric: change for change in run.changes[split]}
        return [by_key[key] for key in wording.in_order(set(by_key))]
    base = run.baselines.get("base", {}).get(split, Scores()).values
    adapted = run.adapted.get(split, Scores()).values
    return [
        Change(key, base[key], adapted[key], adapted[key] - base[key], None)
        for key in wording.in_order(set(base) & set(adapted))
    ]


def figures(run: Run) -> list[Figure]:
    """Before and after of each metric on the split the run is judged by."""
    return [figure(change) for change in changes(run, run.split)]


def figure(change: Change) -> Figure:
    """One change in words, with its interval drawn."""
    metric = wording.metric(change.metric)
    drawn = None
    if change.interval and change.change is not None:
        drawn = charts.strip(change.interval[0], change.change, change.interval[1])
    return Figure(
        label=metric.label,
        before=metric.show(change.base),
        after=metric.show(change.adapted),
        change=metric.show_change(change.change),
        reach=reach(change),
        judgment=judgment(change),
        strip=drawn,
    )


def reach(change: Change) -> str:
    """The interval of a change in words, empty where there is none."""
    if change.interval is None:
        return ""
    metric = wording.metric(change.metric)
    low, high = (metric.show_change(end, unit=False) for end in change.interval)
    return f"{low} to {high}"


def judgment(change: Change) -> str:
    """Better, worse, or not to be told from chance."""
    if change.interval is None or change.change is None:
        return "no interval"
    low, high = change.interval
    if low <= 0 <= high:
        return "could be chance"
    direction = wording.metric(change.metric).better
    if direction == "unknown":
        return "changed"
    return "better" if (change.change > 0) == (direction == "higher") else "worse"


def judged_on(run: Run) -> str:
    """How much the verdict rests on: `100 test rows`."""
    rows = run.adapted.get(run.split, Scores()).values.get("rows")
    return f"{run.split} data" if rows is None else wording.plural(rows, f"{run.split} row")


def glance(run: Run) -> list[Fact]:
    """The run itself in a few figures; those that are not known are left out."""
    plan, speed = run.plan, run.speed
    facts = []
    if plan and plan.trainable is not None:
        note = f"{wording.share(plan.share)} of {wording.count(plan.parameters)}"
        facts.append(Fact("Trained parameters", wording.count(plan.trainable), note))
    if run.steps:
        facts.append(Fact("Steps", wording.count(run.steps[-1].step), _planned(run)))
    if speed.seconds is not None:
        rate = speed.tokens_per_second
        note = "" if rate is None else f"{wording.count(rate)} tokens a second"
        facts.append(Fact("Training time", wording.duration(speed.seconds), note))
    if speed.peak_memory_bytes is not None:
        facts.append(Fact("Peak memory", wording.size(speed.peak_memory_bytes), "whole process"))
    if run.adapter_bytes is not None:
        facts.append(Fact("Adapter", wording.size(run.adapter_bytes), "on disk"))
    return facts


def _planned(run: Run) -> str:
    """How the steps done stand to the plan: its epochs, or how many there should have been."""
    if run.plan is None:
        return ""
    if run.plan.steps and run.steps[-1].step < run.plan.steps:
        return f"of {wording.count(run.plan.steps)} planned"
    epochs = run.plan.epochs
    return "" if epochs is None else f"{wording.figure(epochs, 3)} epoch{'s' * (epochs != 1)}"


def comparisons(run: Run) -> list[Comparison]:
    """The metrics the change was measured on, beside every baseline that has them."""
    adapted = run.adapted.get(run.split, Scores())
    keys = [change.metric for change in changes(run, run.split)]
    others = [(name, run.baselines[name].get(run.split, Scores())) for name in known(run)]
    labels = BASELINES | ({"base": STACKED} if table(run.lock.get("base")).get("under") else {})
    made = []
    for key in keys:
        models = [(OURS, adapted), *((labels.get(name, name), other) for name, other in others)]
        having = [(name, scores) for name, scores in models if key in scores.values]
        if len(having) > 1 and adapted.values.get(key) is not None:
            made.append(side_by_side(key, having))
    return made


def known(run: Run) -> list[str]:
    """The baselines that were measured: those everyone knows first, the rest by name."""
    order = list(BASELINES)
    return sorted(
        run.baselines,
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )


def side_by_side(key: str, models: list[tuple[str, Scores]], ours: str = OURS) -> Comparison:
    """One metric of several models, each with its bar; `ours` stands out."""
    metric = wording.metric(key)
    pairs = [scores.intervals.get(key) for _, scores in models]
    values = [scores.values[key] for _, scores in models]
    ends = charts.bar_ends([*values, *(end for pair in pairs if pair for end in pair)])
    bars = []
    for (name, _), value, pair in zip(models, values, pairs, strict=True):
        drawing = charts.bar(value, pair, ends, ours=name == ours)
        said = f"{metric.show(pair[0])} to {metric.show(pair[1])}" if pair else ""
        bars.append(Bar(name, metric.show(value), said, drawing, ours=name == ours))
    better = {"higher": "Higher is better.", "lower": "Lower is better.", "unknown": ""}
    note = f"Whiskers: {CONFIDENCE} intervals." if any(pairs) else ""
    return Comparison(metric.label, f"{better[metric.better]} {note}".strip(), tuple(bars))


def curves(run: Run) -> list[Chart]:
    """Loss over the steps, then learning rate and gradient norm, each where it was recorded."""
    steps = tuple(step.step for step in run.steps)
    losses = (*loss_lines(run), *course.general_lines(run), *course.jumps(run, "loss"))
    made = [Chart("loss", "Loss by step", curve_summary(run), losses, wording.loss)]
    for key, title, values in (
        ("learning-rate", "Learning rate by step", [step.learning_rate for step in run.steps]),
        ("gradient-norm", "Gradient norm by step", [step.grad_norm for step in run.steps]),
    ):
        line = Line(title.removesuffix(" by step"), steps, tuple(values))
        lines = (line, *(course.jumps(run, "gradient") if key == "gradient-norm" else ()))
        made.append(Chart(key, title, _extent(values), lines, scales=("linear",)))
    made += _penalties(run)
    return made if run.finder is None else [*made, draw_range_test(run.finder)]


def _penalties(run: Run) -> list[Chart]:
    """What was added to the loss, a line for each term; no chart where nothing was."""
    steps = tuple(step.step for step in run.steps)
    names = dict.fromkeys(name for step in run.steps for name in step.penalty)
    lines = tuple(
        Line(name, steps, tuple(step.penalty.get(name) for step in run.steps), "bold", tone=number)
        for number, name in enumerate(list(names)[:LINES])
    )
    values = [value for line in lines for value in line.values]
    title = "Added to the loss by step"
    return [Chart("penalty", title, _extent(values), lines)] if lines else []


def loss_lines(run: Run) -> tuple[Line, ...]:
    """Training loss as recorded and smoothed, and the validation losses."""
    steps = tuple(step.step for step in run.steps)
    raw = tuple(step.loss for step in run.steps)
    width = series.window(len(raw))
    lines = [Line("Training", steps, raw, "thin" if width > 1 else "bold")]
    if width > 1:
        mean = tuple(series.smoothed(raw, width))
        lines.append(Line(f"Training, mean of {width} steps", steps, mean, "bold"))
    evaluated = tuple(item.step for item in run.evaluations)
    lines.append(
        Line(
            "Validation",
            evaluated,
            tuple(item.loss for item in run.evaluations),
            "points",
            tone=1,
            intervals=tuple(item.interval for item in run.evaluations),
        )
    )
    return tuple(line for line in lines if any(value is not None for value in line.values))


def curve_summary(run: Run) -> str:
    """The curves in words, for those who do not look at them."""
    said = (_training(run.steps), _validation(run), _gaps(run.steps), course.in_words(run))
    return " ".join(filter(None, said))


def _training(steps: tuple[Step, ...]) -> str:
    raw = [step.loss for step in steps]
    width = series.window(len(raw))
    mean = [value for value in series.smoothed(raw, width) if value is not None]
    if not mean:
        return ""
    first, last = wording.loss(mean[0]), wording.loss(mean[-1])
    moved = "fell" if mean[-1] < mean[0] else "rose"
    said = f"stayed at {last}" if first == last else f"{moved} from {first} to {last}"
    what = "Smoothed training loss" if width > 1 else "Training loss"
    return f"{what} {said} in {wording.plural(steps[-1].step, 'step')}."


def _validation(run: Run) -> str:
    if not run.evaluations:
        return ""
    best = min(run.evaluations, key=lambda item: item.loss)
    last = run.evaluations[-1]
    said = f"Validation loss was lowest at step {best.step:,} ({wording.loss(best.loss)})"
    return f"{said}." if best is last else f"{said} and ended at {wording.loss(last.loss)}."


def _gaps(steps: tuple[Step, ...]) -> str:
    without = [step.step for step in steps if step.loss is None]
    if not without:
        return ""
    first = f"the first at step {without[0]:,}" if len(without) > 1 else f"step {without[0]:,}"
    return f"{wording.plural(len(without), 'step')} had no finite loss ({first})."


def _extent(values: list[float | None]) -> str:
    known_values = [value for value in values if value is not None]
    if not known_values:
        return ""
    low, high = wording.figure(min(known_values), 3), wording.figure(max(known_values), 3)
    return f"Between {low} and {high}."
