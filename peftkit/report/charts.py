"""Draw line charts and bars as inline SVG that any width stretches and no style sheet must reach.

Positions are percentages of the plot, so text, marks and strokes keep their size on a telephone
and on a wall; only the lines themselves are stretched, by a nested `svg`. Both scales are drawn
here, so a page without scripts still shows the linear one. Every text is escaped here: the
template trusts what comes out.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from peftkit.report import series, wording

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Scale = Literal["linear", "log"]
Interval = tuple[float, float]

_UNITS = 1000
_MOST_MARKS = 200
_STRETCHED = 'preserveAspectRatio="none" width="100%" height="100%" overflow="visible"'
_MARKS = {
    "disc": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M-3.7-3.7h7.4v7.4h-7.4z",
    "triangle": "M0-5l4.8 8.4h-9.6z",
    "diamond": "M0-5.2l4.6 5.2-4.6 5.2-4.6-5.2z",
}
MARKS = tuple(_MARKS)


@dataclass(frozen=True, slots=True)
class Line:
    """One series: a thin or bold line, or marked points with their intervals."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float | None, ...]
    look: Literal["thin", "bold", "points"] = "thin"
    mark: str = "disc"
    tone: int = 0
    intervals: tuple[Interval | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A titled set of series over optimizer steps, or over something else that is counted."""

    key: str
    title: str
    summary: str
    lines: tuple[Line, ...]
    show: Callable[[float | None], str] = wording.figure
    scales: tuple[Scale, ...] = ("linear", "log")
    unit: str = "step"
    """What the series go over."""
    counted: bool = True
    """Whether that is counted from 0, and no number between any two."""
    named: tuple[str, ...] = ()
    """What stands at each place across, from 1 on, where it is no optimizer step."""
    ticks: tuple[int, ...] = ()
    """Places of `named` that the axis shows."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart ready for the page: one SVG a scale, and what its data cursor reads."""

    chart: Chart
    scales: tuple[tuple[Scale, str], ...]
    cursor: dict[str, object]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps a value to its place from 0 (low) to 1 (high)."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def draw(chart: Chart) -> Drawing | None:
    """The chart drawn once a scale; `None` where there is not one finite value to draw."""
    values = [value for line in chart.lines for value in line.values if value is not None]
    if not values:
        return None
    across = _axis_across(chart)
    scales: list[Scale] = [scale for scale in chart.scales if scale == "linear" or min(values) > 0]
    axes = {scale: _value_axis(chart, scale) for scale in scales}
    return Drawing(
        chart=chart,
        scales=tuple((scale, _svg(chart, across, axes[scale])) for scale in scales),
        cursor=_cursor(chart, across, axes),
    )


def _axis_across(chart: Chart) -> _Axis:
    steps = [step for line in chart.lines for step in line.steps]
    if chart.counted:
        return _Axis(0, max(1, *steps))
    low, high = min(steps), max(steps)
    return _Axis(low, high if high > low else low + 1)


def _value_axis(chart: Chart, scale: Scale) -> _Axis:
    values = [value for line in chart.lines for value in line.values if value is not None]
    ends = [end for line in chart.lines for pair in line.intervals if pair for end in pair]
    if scale == "log":
        positive = [*values, *(end for end in ends if end > 0)]
        low, high = min(positive), max(positive)
        room = (high / low) ** 0.04 if high > low else 2.0
        return _Axis(low / room, high * room, log=True)
    low, high = min(*values, *ends, values[0]), max(*values, *ends, values[0])
    room = 0.06 * (high - low) or abs(high) or 1.0
    floor = 0.0 if low >= 0 and low < 0.5 * high else low - room
    return _Axis(floor, high + room)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round figures between the ends: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round figures for a logarithmic axis: powers of ten, with 2 and 5 between where they fit."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most:
            return found if len(found) > 2 else ticks(low, high, most)
    return found[:: math.ceil(len(found) / most)]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _svg(chart: Chart, across: _Axis, up: _Axis) -> str:
    label = escape(f"{chart.title}. {chart.summary}", quote=True)
    scale = "logarithmic" if up.log else "linear"
    parts = [
        f'<svg width="100%" height="100%" role="img" aria-label="{label} ({scale} scale)">',
        '<g aria-hidden="true">',
        _grid(across, up, chart),
        f'<svg viewBox="0 0 {_UNITS} {_UNITS}" {_STRETCHED}>',
        *(_path(line, across, up) for line in chart.lines),
        "</svg>",
        *(_points(line, across, up) for line in chart.lines if line.look == "points"),
        "</g></svg>",
    ]
    return "".join(parts)


def _grid(across: _Axis, up: _Axis, chart: Chart) -> str:
    parts = []
    for value in (log_ticks if up.log else ticks)(up.low, up.high, 6):
        at = _percent(1 - up.place(value))
        parts.append(
            f'<line class="rule" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
            f'<text class="tick" x="0" y="{at}" dx="-8" dy="0.32em" text-anchor="end">'
            f"{escape(wording.figure(value, 6))}</text>"
        )
    for value, words in _places(across, chart):
        at = _percent(across.place(value))
        parts.append(
            f'<text class="tick" x="{at}" y="100%" dy="1.6em" text-anchor="middle">'
            f"{escape(words)}</text>"
        )
    return "".join(parts)


def _places(across: _Axis, chart: Chart) -> list[tuple[float, str]]:
    """Where the axis across says something, and what."""
    if chart.named:
        return [(place, chart.named[place - 1]) for place in chart.ticks]
    places = ticks(across.low, across.high, 5)
    if not chart.counted:
        return [(place, wording.figure(place, 3)) for place in places]
    return [(step, wording.count(step)) for step in places if step == int(step)]


def _path(line: Line, across: _Axis, up: _Axis) -> str:
    """The line through the kept points, lifted where a value is missing."""
    commands: list[str] = []
    lifted = True
    for at in series.kept(line.values):
        value = line.values[at]
        if value is None:
            lifted = True
            continue
        x = _UNITS * across.place(line.steps[at])
        y = _UNITS * (1 - up.place(value))
        # `h0` draws a dot even where no neighbor is finite, thanks to round line ends.
        commands.append(f"M{x:.1f} {y:.1f}h0" if lifted else f"L{x:.1f} {y:.1f}")
        lifted = False
    return (
        f'<path class="line {line.look} tone-{line.tone}" '
        f'vector-effect="non-scaling-stroke" d="{"".join(commands)}"/>'
    )


def _points(line: Line, across: _Axis, up: _Axis) -> str:
    parts = []
    for at in series.kept(line.values, _MOST_MARKS):
        step, value = line.steps[at], line.values[at]
        if value is None:
            continue
        x, y = _percent(across.place(step)), _percent(1 - up.place(value))
        pair = line.intervals[at] if at < len(line.intervals) else None
        if pair is not None and (not up.log or pair[0] > 0):
            low, high = (_percent(1 - up.place(end)) for end in pair)
            parts.append(
                f'<line class="whisker tone-{line.tone}" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>'
            )
        parts.append(
            f'<svg x="{x}" y="{y}" overflow="visible">'
            f'<path class="mark tone-{line.tone}" d="{_MARKS[line.mark]}"/></svg>'
        )
    return "".join(parts)


def swatch(line: Line) -> str:
    """A small picture of how a series is drawn, for the legend."""
    mark = (
        f'<path class="mark tone-{line.tone}" transform="translate(14 7)" d="{_MARKS[line.mark]}"/>'
    )
    return (
        '<svg class="swatch" width="28" height="14" aria-hidden="true">'
        f'<path class="line {line.look} tone-{line.tone}" d="M1 7H27"/>'
        f"{mark if line.look == 'points' else ''}</svg>"
    )


def shape(mark: str) -> str:
    """The path of a mark around its place."""
    return _MARKS[mark]


def _cursor(chart: Chart, across: _Axis, axes: dict[Scale, _Axis]) -> dict[str, object]:
    """What the data cursor reads: each drawn step, and each series' words and height there."""
    chosen = {line.steps[at] for line in chart.lines for at in series.kept(line.values)}
    stops = [sorted(chosen)[at] for at in series.spread(len(chosen), 2 * series.DRAWN)]
    rows = []
    for line in chart.lines:
        values = [_value_at(line, step) for step in stops]
        heights = {
            scale: [None if value is None else round(axis.place(value), 4) for value in values]
            for scale, axis in axes.items()
        }
        words = [None if value is None else chart.show(value) for value in values]
        rows.append({"name": line.name, "tone": line.tone, "words": words, "heights": heights})
    named = {"named": [chart.named[int(stop) - 1] for stop in stops]} if chart.named else {}
    return named | {
        "title": chart.title,
        "unit": chart.unit,
        "steps": stops,
        "places": [round(across.place(step), 4) for step in stops],
        "series": rows,
    }


def _value_at(line: Line, step: float) -> float | None:
    """The value at a step; a smoothed line, which is drawn through, has one between its points."""
    at = bisect_right(line.steps, step) - 1
    if at < 0 or (line.steps[at] != step and (line.look != "bold" or at + 1 == len(line.steps))):
        return None
    return line.values[at]


def strip(low: float, change: float, high: float) -> str:
    """A change and its interval against no change, which is the upright line."""
    axis = _Axis(*_around_zero([low, change, high]))
    ends = [_percent(axis.place(value)) for value in (low, high)]
    zero, at = _percent(axis.place(0)), _percent(axis.place(change))
    return (
        '<svg class="strip" width="100%" height="18" aria-hidden="true">'
        '<line class="rule" x1="0" x2="100%" y1="9" y2="9"/>'
        f'<line class="zero" x1="{zero}" x2="{zero}" y1="1" y2="17"/>'
        f'<line class="reach" x1="{ends[0]}" x2="{ends[1]}" y1="9" y2="9"/>'
        f'<svg x="{at}" y="9" overflow="visible"><path class="mark" d="{_MARKS["disc"]}"/></svg>'
        "</svg>"
    )


def _around_zero(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def bar(value: float, interval: Interval | None, ends: Interval, *, ours: bool) -> str:
    """A bar from zero to the value, with its interval as a whisker."""
    axis = _Axis(*ends)
    zero, at = sorted((axis.place(0), axis.place(value)))
    parts = [
        '<svg class="bar" width="100%" height="16" aria-hidden="true">',
        f'<rect class="{"ours" if ours else "theirs"}" y="2" height="12" rx="1.5"',
        f' x="{_percent(zero)}" width="{_percent(at - zero)}"/>',
        f'<line class="zero" x1="{_percent(axis.place(0))}" x2="{_percent(axis.place(0))}"',
        ' y1="0" y2="16"/>',
    ]
    if interval is not None:
        low, high = (_percent(axis.place(end)) for end in interval)
        parts.append(
            f'<line class="whisker" x1="{low}" x2="{high}" y1="8" y2="8"/>'
            f'<line class="whisker" x1="{low}" x2="{low}" y1="4.5" y2="11.5"/>'
            f'<line class="whisker" x1="{high}" x2="{high}" y1="4.5" y2="11.5"/>'
        )
    return "".join([*parts, "</svg>"])


def bar_ends(values: Sequence[float]) -> Interval:
    """The ends shared by a group of bars: zero, and the largest value or whisker."""
    low, high = min(0.0, *values), max(0.0, *values)
    return (low, high) if high > low else (0.0, 1.0)
