"""How far each block went from the base, as bars on the page and as rows in the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.report import charts, series, wording
from peftkit.report.story import Bar, Comparison

if TYPE_CHECKING:
    from peftkit.report.facts import Run

SHOWN = 24
"""Blocks that are drawn; of more, so many evenly apart."""


def drift_bars(run: Run) -> Comparison | None:
    """The change of each block's weights by their norm; none where no weights changed."""
    if not run.drift:
        return None
    names = list(run.drift)
    kept = [names[at] for at in series.spread(len(names), SHOWN)]
    ends = charts.bar_ends([run.drift[name] for name in kept])
    bars = tuple(
        Bar(
            name=name,
            value=wording.share(run.drift[name]),
            reach="",
            drawing=charts.bar(run.drift[name], None, ends, ours=True),
            ours=False,
        )
        for name in kept
    )
    note = "Norm of the change over the norm of the weights."
    left = f" {len(kept)} of {len(names)} blocks." if len(kept) < len(names) else ""
    return Comparison("How far each block moved", note + left, bars)
