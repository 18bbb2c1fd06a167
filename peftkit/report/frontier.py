"""What runs learned against what they forgot: a point a run, and those that no other run beats."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from peftkit.report import charts, story, wording
from peftkit.report.tables import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.report.comparison import Named
    from peftkit.report.facts import Interval

_AROUND = 0.08
"""Room left around the points, as a share of what they span."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run: how far its loss on what it was taught fell, and how far that on the rest rose."""

    label: str
    gain: float
    reach: Interval | None
    rise: float
    unbeaten: bool = False
    """Whether no other run learned at least as much and forgot no more."""


def points(runs: Sequence[Named]) -> list[Point]:
    """A point for each run that measured both, in the order of the runs."""
    found = [point for item in runs if (point := _point(item)) is not None]
    return [
        Point(own.label, own.gain, own.reach, own.rise, not any(_beats(o, own) for o in found))
        for own in found
    ]


def _point(item: Named) -> Point | None:
    loss = next((c for c in story.changes(item.run, item.run.split) if c.metric == "loss"), None)
    rises = [
        each.after - each.before
        for each in item.run.remembered
        if each.after is not None and each.before is not None
    ]
    if loss is None or loss.change is None or not rises:
        return None
    reach = (-loss.interval[1], -loss.interval[0]) if loss.interval else None
    return Point(item.label, -loss.change, reach, max(rises))


def _beats(one: Point, other: Point) -> bool:
    as_good = one.gain >= other.gain and one.rise <= other.rise
    return as_good and (one.gain, one.rise) != (other.gain, other.rise)


def as_table(found: Sequence[Point]) -> Table:
    """The points in words, those that learned most first."""
    rows = [
        (
            point.label,
            wording.loss(point.gain),
            f"{wording.loss(point.reach[0])} to {wording.loss(point.reach[1])}"
            if point.reach
            else wording.NOTHING,
            wording.loss(point.rise),
            "unbeaten" if point.unbeaten else "",
        )
        for point in sorted(found, key=lambda point: -point.gain)
    ]
    columns = ("Run", "Learned", f"{story.CONFIDENCE} interval", "Forgot", "")
    note = "Nats: the fall of the loss on what was taught, the rise of that on what must stay."
    return Table("", columns, tuple(rows), note)


def scatter(found: Sequence[Point]) -> str:
    """The points as SVG: what was forgotten to the right, what was learned upwards."""
    across = _ends([point.rise for point in found])
    up = _ends([end for point in found for end in (point.gain, *(point.reach or ()))])
    said = f"{len(found)} runs, what they learned against what they forgot"
    parts = [f'<svg width="100%" height="100%" role="img" aria-label="{said}">']
    for value in charts.ticks(*up, 6):
        at = _percent(1 - _place(value, up))
        parts.append(
            f'<line class="rule" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
            f'<text class="tick" x="0" y="{at}" dx="-8" dy="0.32em" text-anchor="end">'
            f"{escape(wording.figure(value, 3))}</text>"
        )
    parts += [
        f'<text class="tick" x="{_percent(_place(value, across))}" y="100%" dy="1.6em" '
        f'text-anchor="middle">{escape(wording.figure(value, 3))}</text>'
        for value in charts.ticks(*across, 5)
    ]
    parts += [_mark(point, across, up) for point in found]
    return "".join([*parts, "</svg>"])


def _mark(point: Point, across: Interval, up: Interval) -> str:
    x, y = _percent(_place(point.rise, across)), _percent(1 - _place(point.gain, up))
    tone, shape = ("tone-0", "disc") if point.unbeaten else ("tone-1", "square")
    drawn = ""
    if point.reach:
        low, high = (_percent(1 - _place(end, up)) for end in point.reach)
        drawn = f'<line class="whisker {tone}" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'
    return (
        f'{drawn}<svg x="{x}" y="{y}" overflow="visible">'
        f'<path class="mark {tone}" d="{charts.shape(shape)}"/>'
        f'<text class="tick" dx="9" dy="-0.4em">{escape(point.label)}</text></svg>'
    )


def _ends(values: Sequence[float]) -> Interval:
    low, high = min(0.0, *values), max(0.0, *values)
    room = _AROUND * (high - low) or 1.0
    return low - room, high + room


def _place(value: float, ends: Interval) -> float:
    return (value - ends[0]) / (ends[1] - ends[0])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
