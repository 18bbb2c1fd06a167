"""Each check finds the fault in figures that have it, and none in figures that do not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.diagnose.checks import (
    FORGETTING,
    GAP,
    OVERFITTING,
    REPEATING,
    SPIKE,
    STILL_FALLING,
    STOPPING,
    WORTH_MORE,
    check_answers,
    check_effect,
    check_forgetting,
    check_learning_rate,
    check_length,
    check_overfitting,
)
from peftkit.diagnose.finding import Finding

Figures = dict[str, Any]


def found(finding: Finding | None) -> Finding:
    assert finding is not None
    return finding


def effect(change: float, low: float, high: float, where: str = "validation") -> Figures:
    return {where: {"loss": {"change": change, "low": low, "high": high}}}


def evaluations(*losses: float, every: int = 100) -> list[Figures]:
    """The base's loss first, then one each `every` steps."""
    return [{"step": number * every, "loss": loss} for number, loss in enumerate(losses)]


def steps(*losses: float) -> list[Figures]:
    return [{"step": number, "loss": loss} for number, loss in enumerate(losses, start=1)]


def remembered(**rises: float) -> Figures:
    return {
        "remember": [
            {"source": source, "before": {"loss": 2.0}, "after": {"loss": 2.0 + rise}}
            for source, rise in rises.items()
        ]
    }


@pytest.mark.parametrize(
    ("change", "low", "high", "kind", "severity"),
    [
        (-0.5, -0.6, -0.4, "no-effect", "ok"),
        (-0.01, -0.05, 0.03, "no-effect", "warning"),
        (0.0, 0.0, 0.0, "no-effect", "warning"),
        (0.01, -0.03, 0.05, "no-effect", "warning"),
        (0.5, 0.4, 0.6, "made-worse", "problem"),
    ],
)
def test_whether_anything_changed(
    change: float, low: float, high: float, kind: str, severity: str
) -> None:
    finding = check_effect({"difference": effect(change, low, high)})
    assert (finding.id, finding.severity, finding.figure) == (kind, severity, change)
    assert f"{change:+.3f} nats per token on validation rows" in finding.sentence
    assert bool(finding.advice) == (severity != "ok")


def test_test_rows_decide_whether_anything_changed() -> None:
    both = effect(-0.5, -0.6, -0.4) | effect(0.5, 0.4, 0.6, "test")
    assert check_effect({"difference": both}).severity == "problem"


@pytest.mark.parametrize(
    ("rise", "severity"),
    [
        (-0.5, "ok"),
        (FORGETTING - 0.01, "ok"),
        (FORGETTING + 0.01, "warning"),
        (5 * FORGETTING - 0.01, "warning"),
        (5 * FORGETTING + 0.01, "problem"),
    ],
)
def test_whether_something_was_forgotten(rise: float, severity: str) -> None:
    finding = found(check_forgetting(remembered(general=rise)))
    assert (finding.id, finding.severity) == ("forgetting", severity)
    assert finding.figure == pytest.approx(rise)
    assert "`general`" in finding.sentence


def test_what_was_forgotten_most_is_named() -> None:
    finding = found(check_forgetting(remembered(a=0.1, b=0.9, c=-0.3)))
    assert "`b`" in finding.sentence
    assert finding.severity == "warning"


def test_where_nothing_had_to_be_remembered_nothing_is_said() -> None:
    assert check_forgetting({}) is None
    assert check_forgetting({"remember": []}) is None


LOW = steps(*[0.5] * 20)


@pytest.mark.parametrize(
    ("losses", "training", "severity"),
    [
        ((3.0, 2.0, 1.5, 2.5), LOW, "warning"),
        ((3.0, 2.0, 1.5, 1.5 * (1 + OVERFITTING) + 0.01), LOW, "warning"),
        ((3.0, 2.0, 1.5, 1.5 * (1 + OVERFITTING) - 0.01), LOW, "ok"),
        ((3.0, 2.5, 2.0, 1.5), LOW, "ok"),
        ((1.0, 2.5, 2.0, 1.9), LOW, "ok"),  # the base was better, which is another finding
        ((3.0, 2.0, 1.5, 2.5), steps(*[2.5 - GAP + 0.01] * 20), "ok"),  # both went up
        ((3.0, 2.0, 1.5, 2.5), steps(*[9.0] * 90, *[0.5] * 10), "warning"),
    ],
)
def test_whether_validation_turned_up_while_training_fell(
    losses: tuple[float, ...], training: list[Figures], severity: str
) -> None:
    finding = found(check_overfitting(evaluations(*losses), training))
    assert (finding.id, finding.severity) == ("overfitting", severity)
    best = min(losses[1:])
    assert finding.figure == pytest.approx(losses[-1] / best - 1)
    if severity == "warning":
        assert "--set train.steps=200" in finding.advice


def test_that_validation_turned_up_is_a_note_where_the_best_was_kept() -> None:
    lines = evaluations(3.0, 2.0, 1.5, 2.5)
    kept = {"steps": {"kept": {"weights": "best", "steps": [200]}}}
    finding = found(check_overfitting(lines, LOW, kept))
    assert (finding.severity, finding.figure) == ("note", pytest.approx(2.5 / 1.5 - 1))
    assert "the weights of step 200 were kept" in finding.sentence
    mean = {"steps": {"kept": {"weights": "mean", "steps": [200, 300]}}}
    assert found(check_overfitting(lines, LOW, mean)).severity == "warning"


@pytest.mark.parametrize("losses", [(), (3.0,), (3.0, 2.0)])
def test_one_evaluation_turns_nowhere(losses: tuple[float, ...]) -> None:
    assert check_overfitting(evaluations(*losses), LOW) is None
    assert check_length(evaluations(*losses)) is None


@pytest.mark.parametrize(
    ("losses", "severity"),
    [
        ((3.0, 2.0, 1.5), "note"),
        ((3.0, 2.0, 2.0 * (1 - STILL_FALLING) - 0.01), "note"),
        ((3.0, 2.0, 2.0 * (1 - STILL_FALLING) + 0.01), "ok"),
        ((3.0, 1.0, 2.0), "ok"),
        ((9.0, 2.0, 1.99), "ok"),  # the fall from the base does not count
        ((3.0, WORTH_MORE, 0.001), "ok"),  # a tenth of nearly nothing
    ],
)
def test_whether_training_ended_too_early(losses: tuple[float, ...], severity: str) -> None:
    finding = found(check_length(evaluations(*losses)))
    assert (finding.id, finding.severity) == ("stopped-too-early", severity)
    assert finding.figure == pytest.approx(1 - losses[-1] / losses[-2])


FALLING = [4.0 - 0.1 * number for number in range(30)]


@pytest.mark.parametrize(
    ("losses", "severity"),
    [
        (FALLING, "ok"),
        ([2.0] * 10, "ok"),
        ([2.0] * 12 + [2.0 * SPIKE + 0.1] * 3 + [2.0] * 9, "warning"),
        ([2.0] * 12 + [2.0 * SPIKE - 0.1] * 3 + [2.0] * 9, "ok"),
        ([2.0] * 12 + [8.0], "warning"),  # it ends in flames
        ([2.0] * 12 + [3.9] + [2.0] * 9, "ok"),  # one odd batch
        ([2.0, 3.0, 5.0, 9.0, 12.0, 14.0, 14.0, 15.0, 15.0, 15.0], "warning"),
    ],
)
def test_whether_the_learning_rate_was_too_high(losses: list[float], severity: str) -> None:
    finding = found(check_learning_rate(steps(*losses)))
    assert (finding.id, finding.severity) == ("learning-rate-too-high", severity)
    assert finding.figure > 0


def test_a_few_steps_say_nothing_of_the_learning_rate() -> None:
    assert check_learning_rate(steps(*[1.0, 99.0] * 4)) is None


@pytest.mark.parametrize("where", ["test", "validation"])
@pytest.mark.parametrize(
    ("stopped", "looping", "severities"),
    [
        (1.0, 0.0, ["ok", "ok"]),
        (STOPPING, REPEATING, ["ok", "ok"]),
        (STOPPING - 0.01, 0.0, ["warning", "ok"]),
        (1.0, REPEATING + 0.01, ["ok", "warning"]),
        (0.0, 1.0, ["warning", "warning"]),
    ],
)
def test_whether_answers_stop_and_do_not_loop(
    stopped: float, looping: float, severities: list[str], where: str
) -> None:
    fine = {"stopped": 1.0, "repetitive": 0.0}
    figures = {"validation": fine, "test": None}
    figures |= {where: {"stopped": stopped, "repetitive": looping}}
    stop, loop = check_answers(figures)
    assert (stop.id, stop.figure, loop.id, loop.figure) == (
        *("stop-token", stopped),
        *("repetition", looping),
    )
    assert [stop.severity, loop.severity] == severities
    assert [bool(stop.advice), bool(loop.advice)] == [s != "ok" for s in severities]


def test_without_answers_nothing_is_said_of_them() -> None:
    assert check_answers({"validation": {"loss": 1.0}, "test": None}) == []


losses = some.lists(some.floats(0.001, 1e3), max_size=25)


@given(trained=losses, judged=losses, change=some.floats(-5, 5), width=some.floats(0, 5))
def test_any_figures_give_findings_that_can_be_written_down(
    trained: list[float], judged: list[float], change: float, width: float
) -> None:
    findings = [
        check_effect({"difference": effect(change, change - width, change + width)}),
        check_learning_rate(steps(*trained)),
        check_length(evaluations(*judged)),
        check_overfitting(evaluations(*judged), steps(*trained)) if trained else None,
    ]
    for finding in filter(None, findings):
        assert json.loads(json.dumps(finding.facts, allow_nan=False)) == finding.facts
        assert bool(finding.advice) == (finding.severity != "ok")
        assert not finding.sentence.endswith(".")


@pytest.mark.parametrize("base", [0.0, 1e-12])
def test_a_loss_of_nothing_is_no_fault(base: float) -> None:
    """Learnt by heart: ratios of such losses would be infinite."""
    assert found(check_overfitting(evaluations(1, base, base), LOW)).severity == "ok"
    assert found(check_learning_rate(steps(*[base] * 12))).severity == "ok"
    length = check_length(evaluations(1, base, base))
    assert length is None or length.severity == "ok"
