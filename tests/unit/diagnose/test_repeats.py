"""Rows that stand twice are told with their share, where they stand, and what they change."""

from typing import Any

import pytest

from peftkit.diagnose.finding import Finding
from peftkit.diagnose.repeats import (
    CONTRADICTED,
    REPEATED,
    check_benchmarks,
    check_between,
    check_conflicts,
    check_duplicates,
    check_leakage,
    check_remembered,
)

Figures = dict[str, Any]


def found(finding: Finding | None) -> Finding:
    assert finding is not None
    return finding


def leakage(exact: int | None, near: int | None, policy: str, rows: int = 10) -> Figures:
    return {
        "validation": {"rows": rows},
        "test": None,
        "leakage": {"exact": exact, "near": near, "policy": policy},
    }


@pytest.mark.parametrize(
    ("data", "severity", "figure"),
    [
        (leakage(0, 0, "error"), "ok", 0.0),
        (leakage(0, 3, "error"), "note", 0.3),
        (leakage(2, 0, "warn"), "problem", 0.2),
        (leakage(2, 3, "warn"), "problem", 0.5),
        (leakage(5, 0, "remove"), "note", 5 / 15),  # ten rows are left of fifteen
        (leakage(2, 0, "warn") | {"test": {"rows": 30}}, "problem", 0.05),
    ],
)
def test_whether_rows_leaked(data: Figures, severity: str, figure: float) -> None:
    finding = found(check_leakage(data, {}))
    assert (finding.id, finding.severity) == ("leakage", severity)
    assert finding.figure == pytest.approx(figure)
    removed = data["leakage"]["policy"] == "remove"
    assert ("left out" in finding.sentence) == removed
    assert bool(finding.advice) == (severity != "ok" and not removed)


@pytest.mark.parametrize(
    ("exact", "near", "severity", "said"),
    [(0, 0, "ok", "no test row"), (2, 1, "note", "is not unseen in the test")],
)
def test_whether_the_sets_to_judge_by_share_rows(
    exact: int, near: int, severity: str, said: str
) -> None:
    data = {"test": {"rows": 9}, "leakage": {"between": {"exact": exact, "near": near}}}
    finding = found(check_between(data))
    assert (finding.severity, finding.figure) == (severity, exact + near)
    assert said in finding.sentence
    assert check_between(data | {"test": None}) is None
    assert check_between({"test": {"rows": 9}, "leakage": {}}) is None  # of an older run


def test_leaks_that_were_not_looked_for_are_not_denied() -> None:
    assert check_leakage(leakage(None, None, "off"), {}) is None


def metrics(name: str, key: str, with_all: float, without: float) -> Figures:
    def difference(value: float) -> Figures:
        return {"loss": {"adapted": 1.5}} | {key: {"adapted": value}}

    return {
        name: {"rows": 500},
        "difference": {name: difference(with_all)},
        f"{name}_without_leaks": {"rows": 489, "difference": difference(without)},
    }


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (
            metrics("test", "accuracy", 0.9, 0.875),
            "; accuracy is 87.5 % on the 489 test rows that did not leak, 90.0 % on all",
        ),
        (
            metrics("validation", "loss", 1.25, 1.5),
            "; loss is 1.500 on the 489 validation rows that did not leak, 1.250 on all",
        ),
    ],
)
def test_the_figure_without_the_leaked_rows_is_told(figures: Figures, said: str) -> None:
    finding = found(check_leakage(leakage(11, 0, "warn", 500), figures))
    assert finding.sentence.endswith(said)


def apart(policy: str, **sets: tuple[int, int]) -> Figures:
    counts = {name: {"exact": exact, "near": near} for name, (exact, near) in sets.items()}
    return {"leakage": {"policy": policy, "sets": counts}}


@pytest.mark.parametrize(
    ("data", "findings"),
    [
        ({"leakage": {"policy": "off"}}, []),
        (apart("warn", validation=(3, 0)), []),
        (
            apart("error", benchmarks=(0, 0), remember=(0, 0)),
            [("benchmark-leakage", "ok"), ("trained-on-remembered", "ok")],
        ),
        (
            apart("warn", benchmarks=(1, 2), remember=(3, 4)),
            [("benchmark-leakage", "problem"), ("trained-on-remembered", "note")],
        ),
        (apart("warn", benchmarks=(0, 2)), [("benchmark-leakage", "note")]),
        (
            apart("remove", benchmarks=(5, 2), remember=(1, 0)),
            [("benchmark-leakage", "note"), ("trained-on-remembered", "note")],
        ),
    ],
)
def test_what_was_to_be_kept_apart(data: Figures, findings: list[tuple[str, str]]) -> None:
    told = [each for each in (check_benchmarks(data), check_remembered(data)) if each]
    assert [(each.id, each.severity) for each in told] == findings
    for each in told:
        assert ("left out" in each.sentence) == (data["leakage"]["policy"] == "remove")


def duplicates(exact: int | None, near: int | None, distinct: int, policy: str = "warn") -> Figures:
    most = [{"rows": 7, "where": "a.jsonl:3", "text": "hello"}] if exact else []
    return {
        "duplicates": {"exact": exact, "near": near, "distinct": distinct}
        | {"most": most, "policy": policy}
    }


@pytest.mark.parametrize(
    ("data", "severity", "figure", "said"),
    [
        (
            duplicates(0, 0, 100),
            "ok",
            0.0,
            "0 of 100 training rows repeat an earlier one; 0 nearly",
        ),
        (duplicates(4, 1, 96), "ok", 0.05, "4 of 100 training rows"),
        (duplicates(444, 32, 5130), "warning", 476 / 5574, "444 of 5,574 training rows repeat"),
        (duplicates(444, 32, 5130), "warning", 476 / 5574, "`a.jsonl:3` stands there 7 times"),
        (duplicates(444, None, 5130), "warning", 444 / 5574, "too many to look for near ones"),
        (duplicates(444, 32, 5130, "remove"), "ok", 476 / 5574, "the first of each was kept"),
    ],
)
def test_how_much_is_said_more_than_once(
    data: Figures, severity: str, figure: float, said: str
) -> None:
    finding = found(check_duplicates(data))
    assert (finding.id, finding.severity, finding.threshold) == ("duplicates", severity, REPEATED)
    assert finding.figure == pytest.approx(figure)
    assert said in finding.sentence
    assert bool(finding.advice) == (severity == "warning")


def test_duplicates_that_were_not_looked_for_are_not_denied() -> None:
    assert check_duplicates({}) is None
    assert check_duplicates(duplicates(None, None, 0, "off")) is None


def conflicts(rows: int, held: int, *, labeled: bool) -> Figures:
    pairs = [{"left": "a:1", "right": "a:2"}] if rows or held else []
    return {
        "train": {"rows": 100},
        "label_conflicts": {"rows": rows, "texts": rows // 2, "held_out": {"test": held}}
        | {"labeled": labeled, "pairs": pairs},
    }


@pytest.mark.parametrize(
    ("data", "severity", "figure", "said"),
    [
        (conflicts(0, 0, labeled=True), "ok", 0.0, "no text has a second label"),
        (conflicts(0, 0, labeled=False), "ok", 0.0, "no text has a second answer"),
        (conflicts(0, 3, labeled=True), "note", 0.0, "contradict 3 held-out rows"),
        (conflicts(4, 0, labeled=True), "warning", 0.04, "2 texts of 4 training rows have more"),
        (conflicts(2, 1, labeled=True), "warning", 0.02, "see `a:1` and `a:2`"),
        (conflicts(40, 0, labeled=False), "note", 0.4, "more than one answer"),
    ],
)
def test_texts_with_two_labels(data: Figures, severity: str, figure: float, said: str) -> None:
    finding = found(check_conflicts(data))
    assert (finding.id, finding.severity) == ("label-conflicts", severity)
    assert (finding.figure, finding.threshold) == (figure, CONTRADICTED)
    assert said in finding.sentence
    assert bool(finding.advice) == (severity != "ok")


def test_runs_that_did_not_look_for_conflicts_say_nothing() -> None:
    assert check_conflicts({}) is None
