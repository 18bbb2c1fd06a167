"""How a run went besides its losses: where it was forgetting, where it jumped, why it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.report import wording
from peftkit.report.charts import MARKS, Line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.report.facts import Run

_MOST_SOURCES = 3
"""Sources of general text that are drawn, those first whose loss rose most."""
_JUMP_TONE, _SOURCE_TONE = 2, 3


def general_lines(run: Run) -> Iterator[Line]:
    """Loss on what must not be forgotten, at each evaluation that measured it."""
    measured = [item for item in run.evaluations if item.remembered]
    if not measured:
        return
    first, last = measured[0].remembered, measured[-1].remembered
    rise = {source: last.get(source, 0.0) - first.get(source, 0.0) for source in last}
    for at, source in enumerate(sorted(rise, key=lambda name: -rise[name])[:_MOST_SOURCES]):
        yield Line(
            f"To be remembered: {source}",
            tuple(item.step for item in measured),
            tuple(item.remembered.get(source) for item in measured),
            "points",
            MARKS[(at + 1) % len(MARKS)],
            tone=_SOURCE_TONE + at,
        )


def jumps(run: Run, kind: str) -> Iterator[Line]:
    """The steps at which the loss, or the gradient norm, jumped."""
    found = [spike for spike in run.spikes if spike.kind == kind]
    if found:
        steps = tuple(spike.step for spike in found for _ in range(2))
        # A gap before each, so that no line leads from one to the next.
        values = tuple(value for spike in found for value in (None, spike.figure))
        yield Line("Spike", steps, values, "points", "triangle", tone=_JUMP_TONE)


def in_words(run: Run) -> str:
    """Spikes, and the end of the run where it was not simply its last step."""
    return " ".join([*_jumped(run), *_ended(run)])


def _jumped(run: Run) -> Iterator[str]:
    if run.spikes:
        steps = ", ".join(f"{spike.step:,}" for spike in run.spikes[:3])
        more = ", \u2026" if len(run.spikes) > 3 else ""
        spikes = wording.plural(len(run.spikes), "spike")
        yield f"There {'was' if len(run.spikes) == 1 else 'were'} {spikes} (step {steps}{more})."


def _ended(run: Run) -> Iterator[str]:
    if run.stopped:
        yield f"The run was stopped early: {wording.stopped(run.stopped)}"
    steps = ", ".join(f"{step:,}" for step in run.kept_steps)
    if run.kept == "best":
        yield f"The weights of step {steps} were kept, the best by validation."
    elif run.kept == "mean":
        yield f"The mean of the weights after steps {steps} was kept."
    elif run.kept == "exponential mean":
        yield "An exponential mean of the weights was kept."
