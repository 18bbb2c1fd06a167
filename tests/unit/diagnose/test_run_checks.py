"""Each check of how a run went finds the fault where it is, and says what is fine elsewhere."""

from typing import Any

import pytest

from peftkit.diagnose.run_checks import (
    AT_ONCE,
    COLLAPSED,
    DRIFT,
    EXPLODED,
    check_drift,
    check_spikes,
    check_stop,
    check_update,
)

Figures = dict[str, Any]


def steps(count: int, jumps: dict[int, Figures] | None = None) -> list[Figures]:
    plain = {"loss": 2.0, "grad_norm": 0.5}
    return [
        {"step": number, **plain, **(jumps or {}).get(number, {})} for number in range(1, count + 1)
    ]


def test_a_quiet_run_has_no_spikes() -> None:
    assert [(f.id, f.severity) for f in check_spikes(steps(200))] == [
        ("loss-spike", "ok"),
        ("gradient-spike", "ok"),
    ]


def test_a_spike_is_told_with_its_step_and_block() -> None:
    jump = {"grad_norm": 9.0, "blocks": {"layers.0": 1.0, "layers.1": 8.9}, "skipped": True}
    loss, gradient = check_spikes(steps(200, {90: jump}))
    assert loss.severity == "ok"
    assert gradient.severity == "note"
    assert gradient.figure == pytest.approx(1 / 200)
    assert "gradient norm 9 at step 90, usually 0.5, most of it in `layers.1`" in gradient.sentence
    assert gradient.sentence.endswith("1 of these updates were left out")


def test_many_spikes_are_a_warning() -> None:
    loss, gradient = check_spikes(steps(200, {at: {"loss": 9.0} for at in (60, 90, 120)}))
    assert (loss.severity, gradient.severity) == ("warning", "ok")
    assert "jumped 3 times" in loss.sentence


@pytest.mark.parametrize(
    ("figure", "exploded", "collapsed"),
    [
        (0.2, "ok", "ok"),
        (EXPLODED * 1.01, "warning", "ok"),
        (EXPLODED * 0.99, "ok", "ok"),
        (COLLAPSED * 0.99, "ok", "warning"),
        (COLLAPSED * 1.01, "ok", "ok"),
    ],
)
def test_how_far_the_weights_moved(figure: float, exploded: str, collapsed: str) -> None:
    found = check_update({"drift": {"layers": {"layers.0": figure / 2, "layers.1": figure}}})
    assert [(f.id, f.severity) for f in found] == [
        ("update-exploded", exploded),
        ("update-collapsed", collapsed),
    ]
    assert all(f.figure == figure and "`layers.1`" in f.sentence for f in found)
    assert all(bool(f.advice) == (f.severity != "ok") for f in found)


@pytest.mark.parametrize("metrics", [{}, {"drift": None}, {"drift": {"layers": {}}}])
def test_where_no_weights_changed_nothing_is_said_of_them(metrics: Figures) -> None:
    assert check_update(metrics) == []
    assert check_drift(metrics) is None


@pytest.mark.parametrize(
    ("figure", "severity"),
    [(DRIFT * 0.99, "ok"), (DRIFT * 1.01, "note"), (DRIFT * 5.01, "warning")],
)
def test_how_far_the_predictions_moved(figure: float, severity: str) -> None:
    found = check_drift({"drift": {"divergence": {"a.txt": 0.01, "b.txt": figure}}})
    assert found is not None
    assert (found.id, found.severity, found.figure) == ("drift", severity, figure)
    assert "`b.txt`" in found.sentence


def stopped(taken: int, reason: str = "patience") -> Figures:
    stop = {"reason": reason, "sentence": "enough is enough"}
    return {"steps": {"planned": 100, "taken": taken, "stopped": stop}}


@pytest.mark.parametrize("reason", ["patience", "forgetting", "overfitting"])
def test_a_stop_almost_at_once(reason: str) -> None:
    early, later = (
        check_stop(stopped(taken, reason)) for taken in (int(100 * AT_ONCE) - 1, int(100 * AT_ONCE))
    )
    assert early is not None
    assert later is not None
    assert (early.id, early.severity) == ("stopped-too-early", "warning")
    assert early.advice
    assert (later.id, later.severity) == ("stopped-too-early", "ok")
    assert "enough is enough" in later.sentence


def test_a_run_that_took_all_its_steps_was_not_stopped() -> None:
    assert check_stop({}) is None
    assert check_stop({"steps": {"planned": 9, "taken": 9, "stopped": None}}) is None
