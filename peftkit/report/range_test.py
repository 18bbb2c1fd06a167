"""The chart of how a learning rate was found: places across are trials, named by their rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from peftkit.report import wording
from peftkit.report.charts import Chart, Line

if TYPE_CHECKING:
    from peftkit.report.facts import RangeTest


def draw_range_test(test: RangeTest) -> Chart:
    """The loss by learning rate, with the suggestion among the places that are named."""
    trials = tuple(range(1, len(test.rates) + 1))
    named = tuple(wording.figure(rate, 2) for rate in test.rates)
    chosen = min(trials, key=lambda at: abs(math.log(test.rates[at - 1] / test.suggestion)))
    every = max(len(trials) // 5, 1)
    ticks = [at for at in trials[::every] if abs(at - chosen) > every // 2]
    lines = (
        Line("Loss", trials, test.losses),
        Line("Smoothed", trials, test.smoothed, "bold"),
        Line("Suggested", (chosen,), (test.smoothed[chosen - 1],), "points", tone=1),
    )
    summary = f"The suggestion is {wording.figure(test.suggestion, 2)}."
    title = f"Range test: loss by learning rate, {wording.figure(test.suggestion, 2)} suggested"
    places = tuple(sorted([*ticks, chosen]))
    return Chart(
        "range-test",
        title,
        summary,
        lines,
        wording.loss,
        ("linear",),
        unit="learning rate",
        named=named,
        ticks=places,
    )
