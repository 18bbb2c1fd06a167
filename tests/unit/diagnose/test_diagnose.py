"""A finished run is read from its folder, and what is worst about it comes first."""

from pathlib import Path
from typing import Any

from peftkit.diagnose.diagnose import ORDER, diagnose
from peftkit.report.record import EVALUATIONS, STEPS, RunFolder


def folder(
    path: Path, *, change: float, stopped: float, last: float, exact: int | None
) -> RunFolder:
    run = RunFolder(path)
    loss = {"change": change, "low": change - 0.1, "high": change + 0.1}
    answers = {"loss": 1.0, "stopped": stopped, "repetitive": 0.0}
    metrics: dict[str, Any] = {
        "validation": answers,
        "test": None,
        "difference": {"validation": {"loss": loss}},
        "remember": [{"source": "a.txt", "before": {"loss": 1.0}, "after": {"loss": 1.0}}],
    }
    rows = {"rows": 10}
    leakage = {"exact": exact, "near": exact and 0, "policy": "warn", "pairs": []}
    run.write("metrics.json", metrics)
    run.write("data.json", {"validation": rows, "test": None, "leakage": leakage})
    for step in range(1, 21):
        run.append(STEPS, {"step": step, "loss": 0.5, "grad_norm": 1.0})
    for step, value in ((0, 3.0), (10, 1.5), (20, last)):
        run.append(EVALUATIONS, {"step": step, "loss": value})
    return run


def test_a_sound_run_is_told_what_was_checked(tmp_path: Path) -> None:
    findings = diagnose(folder(tmp_path, change=-0.5, stopped=1.0, last=1.49, exact=0))
    assert {finding.severity for finding in findings} == {"ok"}
    assert {finding.id for finding in findings} == {
        *("no-effect", "leakage", "forgetting", "overfitting", "learning-rate-too-high"),
        *("stopped-too-early", "stop-token", "repetition", "loss-spike", "gradient-spike"),
    }


def test_the_worst_comes_first(tmp_path: Path) -> None:
    findings = diagnose(folder(tmp_path, change=0.5, stopped=0.2, last=1.0, exact=3))
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, key=ORDER.index)
    assert [(finding.id, finding.severity) for finding in findings if finding.severity != "ok"] == [
        ("made-worse", "problem"),
        ("leakage", "problem"),
        ("stop-token", "warning"),
        ("stopped-too-early", "note"),
    ]


def test_what_was_not_looked_at_is_not_reported(tmp_path: Path) -> None:
    findings = diagnose(folder(tmp_path, change=-0.5, stopped=1.0, last=3.0, exact=None))
    assert "leakage" not in {finding.id for finding in findings}
    assert findings[0].id == "overfitting"
    assert findings[0].severity == "warning"
