"""What the report of a merge says, once for the page and the text: verdict, tables, trace."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from peftkit.report import story, tolerant, wording
from peftkit.report.charts import Chart, Line
from peftkit.report.facts import Change, Scores
from peftkit.report.merge_facts import BASE, MERGED
from peftkit.report.story import Comparison, Figure, Headline
from peftkit.report.tables import Table
from peftkit.report.tolerant import label, number, rows, table, text
from peftkit.report.wording import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peftkit.report.merge_facts import JudgedSet, Merge, Part, Search, Trial

LISTED = 20
"""Layers and evaluations that are shown; the files have the rest."""
SHARE_OF_BASE = ", share of the base"
"""Ends the name of a figure of a search that is no figure of a set itself."""

ELSEWHERE = ("ranks", "error", "preflight", "recipe", "evaluation", "search")
"""Parts of `merge.json` that the page shows in other places."""

_ANSWERS = {"yes": "Yes", "no": "No", "unclear": "Unclear"}


def headline(merge: Merge) -> Headline:
    """Whether the merge does what it was made for; without a verdict, why there is none."""
    if merge.sentence is None:
        lead = "It was merged and not judged: the recipe names no rows under `evaluate`."
        return Headline("No verdict", "none", "Not judged", lead, lead)
    helped = merge.helped if merge.helped in _ANSWERS else "unclear"
    answer = _ANSWERS[helped]
    head, colon, tail = merge.sentence.partition(": ")
    title = wording.sentence_case(head) if helped == "unclear" else f"{answer}, {head}"
    lead = wording.stopped(wording.sentence_case(tail if colon else merge.sentence))
    return Headline(answer, helped, title if colon else answer, lead, merge.sentence)


def formula(merge: Merge) -> str:
    """The formula with its numbers, and the method."""
    said = text(merge.plan.get("formula")) or " + ".join(
        f"{wording.figure(number(each.get('weight')))}*{label(each.get('name'))}"
        for each in rows(merge.made.get("terms"))
    )
    method = text(merge.plan.get("method")) or "sum"
    return said if method == "sum" else f"{said} by {method}"


def findings_line(merge: Merge) -> str:
    """How many findings ask for attention."""
    return story.count_findings(merge.findings)


def figures(merge: Merge) -> list[Figure]:
    """Base and merge on each set, with the change and its interval."""
    made = []
    for found in merge.sets:
        change = found.against_base.get(MERGED, {}).get(found.metric)
        if change is not None:
            figure = story.figure(change)
            made.append(replace(figure, label=f"{found.name}: {figure.label.lower()}"))
    return made


def judged_on(found: JudgedSet) -> str:
    """How many rows, and whether the search had seen others."""
    said = wording.plural(found.rows, "row")
    return f"{said} that the search did not see" if found.holdout else said


def parents(merge: Merge) -> list[str]:
    """The parents that were judged, in the order of the formula."""
    names = dict.fromkeys(name for found in merge.sets for name in found.models)
    return [name for name in names if name not in (BASE, MERGED)]


def retention(merge: Merge) -> Table:
    """Every model on every set, and what the merge keeps of the best parent."""
    names = [BASE, *parents(merge), MERGED]
    lines = []
    for found in merge.sets:
        metric = wording.metric(found.metric)
        cells = [
            _cell(found, name, metric) if name in found.models else "not judged" for name in names
        ]
        against = found.against_parent.get(found.metric)
        beside = f"{_change(against)}\n({found.best_parent})" if against else NOTHING
        lines.append(
            (
                f"{found.name}\n{metric.label.lower()}",
                *cells,
                beside,
                _part(found.retained),
                _part(found.performance.get(MERGED)),
            )
        )
    kept = ("Beside the best parent", "Gain kept", "As good as base")
    return Table(
        "",
        ("Set", *(wording.sentence_case(name) for name in names), *kept),
        tuple(lines),
        f"Under a figure: its change from the base, and the {story.CONFIDENCE} interval of that. "
        "As good as the base: by right answers, or of a loss by the ratio of perplexities.",
    )


def _cell(found: JudgedSet, name: str, metric: wording.Metric) -> str:
    shown = metric.show(found.models[name].values.get(found.metric))
    change = found.against_base.get(name, {}).get(found.metric)
    return f"{shown}\n{_change(change)}" if change else shown


def _change(change: Change | None) -> str:
    if change is None:
        return NOTHING
    shown = wording.metric(change.metric).show_change(change.change)
    return f"{shown}\n{story.reach(change)}" if change.interval else shown


def _part(part: Part | None) -> str:
    if part is None:
        return NOTHING
    shown = f"{wording.figure(100 * part.share, 3)} %"
    if part.reach is None:
        return shown
    low, high = (wording.figure(100 * end, 3) for end in part.reach)
    return f"{shown}\n{low} to {high}"


def comparisons(merge: Merge) -> list[Comparison]:
    """A set after the other, the models of each as bars."""
    made = []
    for found in merge.sets:
        models = [
            (wording.sentence_case(name), Scores({found.metric: scores.values[found.metric]}))
            for name, scores in found.models.items()
            if found.metric in scores.values
        ]
        if len(models) > 1:
            bars = story.side_by_side(found.metric, models, wording.sentence_case(MERGED))
            made.append(replace(bars, label=f"{found.name}: {bars.label.lower()}"))
    return made


def every_figure(merge: Merge) -> list[Table]:
    """All metrics of all models, a table a set."""
    made = []
    for found in merge.sets:
        keys = wording.in_order({key for each in found.models.values() for key in each.values})
        lines = tuple(
            (
                wording.metric(key).label,
                *(wording.metric(key).show(each.values.get(key)) for each in found.models.values()),
            )
            for key in keys
        )
        names = (wording.sentence_case(name) for name in found.models)
        places = ", ".join(f"`{place}`" for place in found.sources)
        note = f"On {judged_on(found)}{' of ' + places if places else ''}."
        made.append(Table(found.name, ("Metric", *names), lines, note))
    return [each for each in made if each.rows]


def terms(merge: Merge) -> list[Table]:
    """What was added up, and how the terms stand to each other."""
    described = [*rows(merge.plan.get("terms")), table(merge.plan.get("merged"))]
    lines = [
        (
            label(each.get("name")),
            wording.figure(number(each.get("weight"))),
            wording.figure(number(each.get("norm"))),
            wording.count(number(each.get("modules"))),
            _ranks(each.get("ranks")),
        )
        for each in described
        if each
    ]
    pairs = [
        (
            " and ".join(map(label, pair if isinstance(pair, list) else [])),
            wording.figure(number(each.get("cosine")), 3),
            wording.share(number(each.get("overlap"))),
            wording.share(number(each.get("sign_conflict"))),
            wording.count(number(each.get("shared_modules"))),
        )
        for each in rows(merge.plan.get("pairs"))
        for pair in [each.get("pair")]
    ]
    canceled = number(merge.plan.get("canceled"))
    note = f"{wording.share(canceled)} of all that the terms change cancels." if canceled else ""
    made = [
        Table("Terms", ("Term", "Times", "Length", "Modules", "Ranks"), tuple(lines)),
        Table(
            "Each with each",
            ("Pair", "Cosine", "Directions in common", "Opposite signs", "Modules of both"),
            tuple(pairs),
            note,
        ),
    ]
    return [each for each in made if each.rows]


def _ranks(value: object) -> str:
    found = tolerant.interval(value)
    if found is None:
        return NOTHING
    low, high = map(wording.count, found)
    return low if low == high else f"{low} to {high}"


def layers(merge: Merge) -> list[Table]:
    """What cutting the ranks lost, the layers that lost most first."""
    error = table(merge.made.get("error"))
    lost = {name: number(value) or 0.0 for name, value in table(error.get("layers")).items()}
    if not any(value > 0 for value in lost.values()):
        return []
    worst = sorted(lost, key=lambda name: -lost[name])
    note = f"{LISTED} of {len(worst):,}; all are in `merge.json`." if len(worst) > LISTED else ""
    lines = tuple((name, wording.share(lost[name])) for name in worst[:LISTED])
    return [Table("What the cut lost by layer", ("Layer", "Of its change"), lines, note)]


def cut_sentence(merge: Merge) -> str:
    """What cutting the ranks cost in all."""
    error = number(merge.plan.get("error"))
    if error is None:
        error = number(table(merge.made.get("error")).get("relative"))
    if error is None:
        return ""
    if error < 1e-6:
        return "Nothing was cut off: this is the exact result."
    return f"Cutting the ranks lost {wording.share(error)} of the change."


def search_line(search: Search) -> str:
    """What was searched for, how, and what was found."""
    aim = "worse" if search.worsens else "better"
    limits = " and ".join(
        f"`{name}` stays at least {wording.share(least)} as good as with the base"
        for name, least in search.subject_to.items()
    )
    found = ", ".join(f"{name} {wording.figure(value)}" for name, value in search.best.items())
    way = {
        "bisection": "by halving towards the largest number that keeps it",
        "narrowing": "by looking from end to end and narrowing down",
        "models": "by models of second degree",
    }.get(label(search.facts.get("way")), "")
    said = f"Numbers that make `{search.objective}` {aim}{', where ' + limits if limits else ''}"
    tries = wording.plural(len(search.trials), "evaluation")
    return " ".join(filter(None, [f"{said}, in {tries}", way])) + f": {found}."


def trace(search: Search) -> list[Chart]:
    """The objective, and each share that had to be kept, by number or by evaluation."""
    label_ = wording.metric(search.metric)
    first = f"{label_.label} on {search.objective}"
    made = [_chart("objective", first, search, search.objective, label_.show)]
    for name, least in search.subject_to.items():
        key = f"{name}{SHARE_OF_BASE}"
        chart = _chart(f"kept-{name}", f"{name} as a share of the base", search, key, wording.share)
        places = [place for line in chart.lines for place in line.steps]
        ends = (min(places), max(places)) if places else ()
        limit = Line("Least", ends, (least,) * len(ends), "bold", tone=1)
        made.append(replace(chart, lines=(*chart.lines, limit)))
    return [chart for chart in made if chart.lines]


def _chart(key: str, title: str, search: Search, figure: str, show: story.Show) -> Chart:
    one = next(iter(search.over)) if len(search.over) == 1 else None
    trials = [each for each in search.trials if figure in each.figures]
    if one is not None:
        trials = sorted(trials, key=lambda each: each.numbers.get(one, 0.0))
    places = tuple(
        each.numbers.get(one, 0.0) if one is not None else at for at, each in enumerate(trials, 1)
    )
    lines = [
        _points(name, places, trials, figure, kept=kept, look=look)
        for name, kept, look in (
            ("Constraint kept" if search.subject_to else "Tried", True, ("disc", 0)),
            ("Constraint broken", False, ("square", 2)),
        )
        if any(each.kept is kept for each in trials)
    ]
    by = f"by number of {one}" if one is not None else "by evaluation"
    said = _extent([each.figures[figure] for each in trials], show)
    unit = f"{one} =" if one is not None else "evaluation"
    return Chart(
        key, f"{title} {by}", said, tuple(lines), show, ("linear",), unit, counted=one is None
    )


def _points(
    name: str,
    places: Sequence[float],
    trials: Sequence[Trial],
    figure: str,
    *,
    kept: bool,
    look: tuple[str, int],
) -> Line:
    """The trials that kept the constraints, or that did not."""
    own = [(at, each) for at, each in zip(places, trials, strict=True) if each.kept is kept]
    steps = tuple(at for at, _ in own)
    values = tuple(each.figures[figure] for _, each in own)
    return Line(name, steps, values, "points", mark=look[0], tone=look[1])


def _extent(values: Sequence[float], show: story.Show) -> str:
    return f"Between {show(min(values))} and {show(max(values))}." if values else ""


def trials(search: Search) -> Table:
    """Every evaluation in its order."""
    names = list(search.over)
    sets = list(dict.fromkeys(key for each in search.trials for key in each.figures))
    lines = tuple(
        (
            wording.count(at),
            *(wording.figure(each.numbers.get(name)) for name in names),
            *(_figure(key, each.figures.get(key), search) for key in sets),
            "yes" if each.kept else "no",
        )
        for at, each in enumerate(search.trials, 1)
    )
    return Table("", ("Evaluation", *names, *map(wording.sentence_case, sets), "Kept"), lines)


def _figure(key: str, value: float | None, search: Search) -> str:
    if key.endswith(SHARE_OF_BASE):
        return wording.share(value)
    return (
        wording.metric(search.metric).show(value)
        if key == search.objective
        else wording.figure(value)
    )


def provenance(merge: Merge) -> list[Table]:
    """What the result itself says of where it came from."""
    return list(_leaves({key: merge.made[key] for key in merge.made if key not in ELSEWHERE}))


def recipe(merge: Merge) -> list[Table]:
    """The recipe with every default filled in."""
    lines = tuple((key, wording.clipped(value, 300)) for key, value in merge.recipe.items())
    return [Table("Every key", ("Key", "Value"), lines)] if lines else []


def _leaves(made: dict[str, object]) -> Iterator[Table]:
    parts = [
        (f"parent {label(each.get('name'))}", tolerant.flat(each))
        for each in rows(made.get("parents")) or rows(made.get("terms"))
    ]
    rest = {key: value for key, value in made.items() if key not in ("terms", "parents")}
    for title, leaves in [("Result", tolerant.flat(rest)), *parts]:
        lines = tuple(
            (key.replace("_", " "), wording.clipped(value, 300))
            for key, value in leaves.items()
            if value not in ("null", "[]")
        )
        if lines:
            yield Table(wording.sentence_case(title), (), lines)
