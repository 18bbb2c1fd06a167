"""Each check of a merge finds the fault in figures that have it, and none in others."""

from typing import Any

import pytest

from peftkit.diagnose.finding import Finding
from peftkit.diagnose.merges import FORGOTTEN_SHARE, KEPT, LOSSY, diagnose_merge

Figures = dict[str, Any]


def figures(
    name: str = "chat",
    change: float = -1.0,
    spread: float = 0.05,
    kept: float | None = 0.95,
    **more: Any,
) -> Figures:
    metric = more.pop("metric", "loss")
    return {
        "name": name,
        "role": "task",
        "rows": 100,
        "metric": metric,
        "best_parent": name,
        "against_base": {
            "merged": {metric: {"change": change, "low": change - spread, "high": change + spread}}
        },
        "retained": None
        if kept is None
        else {"share": kept, "low": kept - spread, "high": kept + spread},
        "performance": {"merged": {"share": 0.97, "low": 0.96, "high": 0.98}},
    } | more


def control(change: float, metric: str = "loss", **more: Any) -> Figures:
    return figures("control", change, kept=None, role="control", metric=metric, **more)


def searched(**more: Any) -> Figures:
    return {
        "objective": "chat",
        "direction": "improve",
        "over": {"chat": [0.0, 2.0]},
        "best": {"chat": 1.1},
        "subject_to": {},
        "note": "",
    } | more


def holdout(difference: float) -> Figures:
    ends = {"low": difference - 0.05, "high": difference + 0.05}
    return {"searched": -1.0, "held": -1.0 + difference, "difference": difference} | ends


def diagnosed(
    sets: list[Figures], search: Figures | None = None, error: float = 0.0
) -> dict[str, Finding]:
    found = diagnose_merge({"task": "causal-lm", "sets": sets}, search, error)
    assert [each.severity for each in found] == sorted(
        (each.severity for each in found), key=["problem", "warning", "note", "ok"].index
    )
    return {each.id: each for each in found}


def test_a_merge_that_is_fine_says_what_was_checked() -> None:
    found = diagnosed(
        [figures(holdout=holdout(0.0)), control(0.1)], searched(subject_to={"control": 0.95})
    )
    assert {each.severity for each in found.values()} == {"ok"}
    assert len(found) == 7


@pytest.mark.parametrize(
    ("kept", "spread", "severity"),
    [(KEPT, 0.1, "ok"), (KEPT - 0.05, 0.02, "warning"), (KEPT - 0.05, 0.1, "note")],
)
def test_a_task_that_keeps_too_little(kept: float, spread: float, severity: str) -> None:
    sets = [figures("chat", spread=spread, kept=kept), figures("code", kept=0.9)]
    found = diagnosed(sets)["task-interference"]
    assert found.severity == severity
    assert found.figure == pytest.approx(kept)
    assert f"`chat` keeps {100 * kept:.0f} %" in found.sentence


def test_what_is_to_get_worse_is_no_interference() -> None:
    search = searched(direction="worsen", objective="chat")
    assert "task-interference" not in diagnosed([figures(kept=0.1)], search)


@pytest.mark.parametrize(
    ("rise", "severity"), [(-0.1, "ok"), (0.2, "ok"), (0.3, "warning"), (1.2, "problem")]
)
def test_forgetting_is_of_control_rows(rise: float, severity: str) -> None:
    found = diagnosed([figures(), control(rise)])["forgetting"]
    assert found.severity == severity
    assert "97.0 % as good as the base" in found.sentence
    assert "forgetting" not in diagnosed([figures(change=rise)])


@pytest.mark.parametrize(("fall", "severity"), [(0.04, "ok"), (0.1, "warning"), (0.3, "problem")])
def test_forgotten_answers_count_in_points(fall: float, severity: str) -> None:
    found = diagnosed([control(-fall, "accuracy")])["forgetting"]
    assert (found.severity, found.threshold) == (severity, FORGOTTEN_SHARE)


def test_no_effect_is_of_all_sets() -> None:
    nothing = figures(change=0.01, kept=None)
    assert diagnosed([nothing])["no-effect"].severity == "warning"
    assert diagnosed([nothing, figures("code")])["no-effect"].severity == "ok"


@pytest.mark.parametrize(("error", "severity"), [(0.0, "ok"), (LOSSY, "ok"), (0.3, "warning")])
def test_a_cut_that_loses_much(error: float, severity: str) -> None:
    assert diagnosed([], error=error)["lossy-cut"].severity == severity


@pytest.mark.parametrize(
    ("direction", "difference", "severity"),
    [
        ("improve", 0.2, "warning"),
        ("improve", 0.02, "ok"),
        ("improve", -0.2, "ok"),
        ("worsen", -0.2, "warning"),
        ("worsen", 0.2, "ok"),
    ],
)
def test_a_search_that_fits_its_own_rows(direction: str, difference: float, severity: str) -> None:
    found = diagnosed([figures(holdout=holdout(difference))], searched(direction=direction))
    assert found["overfitting"].severity == severity


@pytest.mark.parametrize(("least", "severity"), [(0.95, "ok"), (0.975, "note"), (0.99, "warning")])
def test_a_constraint_that_held_out_rows_break(least: float, severity: str) -> None:
    found = diagnosed([control(0.0)], searched(subject_to={"control": least}))["constraint"]
    assert found.severity == severity
    assert found.figure == pytest.approx(0.97 - least)


@pytest.mark.parametrize(("best", "severity"), [(0.0, "ok"), (1.0, "ok"), (1.99, "note")])
def test_a_range_that_ended_the_search(best: float, severity: str) -> None:
    assert diagnosed([], searched(best={"chat": best}))["search-range"].severity == severity


def test_a_search_that_cannot_be_trusted() -> None:
    found = diagnosed([], searched(note="the constraint is kept again further on"))
    assert found["not-monotone"].severity == "note"
    assert "kept again further on" in found["not-monotone"].sentence
