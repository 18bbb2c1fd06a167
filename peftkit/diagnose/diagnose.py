"""All checks of a run, worst first, from the figures in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.diagnose.checks import (
    check_answers,
    check_effect,
    check_forgetting,
    check_learning_rate,
    check_length,
    check_overfitting,
)
from peftkit.diagnose.data_checks import check_data
from peftkit.diagnose.repeats import (
    check_benchmarks,
    check_between,
    check_conflicts,
    check_duplicates,
    check_leakage,
    check_remembered,
)
from peftkit.diagnose.run_checks import check_drift, check_spikes, check_stop, check_update
from peftkit.diagnose.shares import check_mixture
from peftkit.diagnose.unfreezing import check_unfreezing
from peftkit.report.record import EVALUATIONS, STEPS, UNFREEZING

if TYPE_CHECKING:
    from peftkit.diagnose.finding import Finding
    from peftkit.report.record import RunFolder

ORDER = ("problem", "warning", "note", "ok")


def diagnose(run: RunFolder) -> list[Finding]:
    """Every finding of a finished run, the most serious first."""
    metrics, data = run.read("metrics.json"), run.read("data.json")
    steps, evaluations = run.lines(STEPS), run.lines(EVALUATIONS)
    found = [
        check_effect(metrics),
        check_leakage(data, metrics),
        check_between(data),
        check_benchmarks(data),
        check_remembered(data),
        check_duplicates(data),
        check_conflicts(data),
        *check_mixture(metrics, data),
        check_forgetting(metrics),
        check_overfitting(evaluations, steps, metrics),
        check_learning_rate(steps),
        *check_spikes(steps),
        *check_update(metrics),
        check_drift(metrics),
        check_stop(metrics) or check_length(evaluations),
        check_unfreezing(run.read(UNFREEZING)),
        *check_answers(metrics),
        *check_data(data, metrics.get("task", "causal-lm")),
    ]
    kept = [finding for finding in found if finding is not None]
    return sorted(kept, key=lambda finding: ORDER.index(finding.severity))
