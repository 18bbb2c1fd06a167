"""Each check of the rows finds the planted fault, and none where there is none."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.diagnose.data_checks import (
    COARSE,
    FEWEST_CHECKED,
    FEWEST_TOLD,
    IMBALANCE,
    LOST,
    LOW_QUALITY,
    NOISE,
    OTHER_LANGUAGE,
    UNKNOWN,
    check_balance,
    check_data,
    check_label_noise,
    check_languages,
    check_missing_classes,
    check_preprocessing,
    check_quality,
)
from peftkit.diagnose.finding import Finding

Facts = dict[str, Any]


def found(finding: Finding | None) -> Finding:
    assert finding is not None
    return finding


def balance(ratio: float | None, lacking: tuple[str, ...] = ()) -> Facts:
    small = 100 if ratio else 0
    counts = {"big": int(100 * (ratio or 1)), "small": small}
    train = {"counts": counts, "majority": 0.5, "lacking": [] if small else ["small"]}
    held = {"counts": counts, "majority": 0.5, "lacking": list(lacking)}
    return {"balance": {"train": train, "validation": held, "ratio": ratio, "of": "rows"}}


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [(1.0, "ok"), (IMBALANCE, "ok"), (IMBALANCE + 0.1, "warning"), (None, "warning")],
)
def test_whether_classes_are_balanced(ratio: float | None, severity: str) -> None:
    finding = found(check_balance(balance(ratio)))
    assert (finding.id, finding.severity) == ("class-imbalance", severity)
    assert bool(finding.advice) == (severity != "ok")
    if ratio is None:
        assert "no training row is of `small`" in finding.sentence
    else:
        assert finding.figure == ratio


def test_whether_a_class_goes_unmeasured() -> None:
    assert found(check_missing_classes(balance(2.0))).severity == "ok"
    finding = found(check_missing_classes(balance(2.0, ("a", "b", "c", "d", "e", "f", "g"))))
    assert (finding.severity, finding.figure) == ("note", 7)
    assert "`a`, `b`, `c`, `d`, `e` and 2 more" in finding.sentence


def noise(sure: int, *, rows: int = 1000, agreement: float = 0.8) -> Facts:
    row = {"where": "a.jsonl:7", "given": "x", "suspected": "y", "confidence": 0.9}
    return {
        "label_noise": {
            "rows": rows,
            "agreement": agreement,
            "majority": 0.5,
            "sure": sure,
            "listed": [row] * bool(sure),
        }
    }


@pytest.mark.parametrize(
    ("facts", "severity"),
    [
        (noise(0), "ok"),
        (noise(int(1000 * NOISE)), "ok"),
        (noise(int(1000 * NOISE) + 1), "note"),
        (noise(int(2000 * NOISE) + 1), "warning"),
        (noise(FEWEST_CHECKED // 4, rows=FEWEST_CHECKED - 1), "note"),
        (noise(200, agreement=0.55), "note"),
    ],
)
def test_whether_labels_are_wrong(facts: Facts, severity: str) -> None:
    finding = found(check_label_noise(facts))
    assert (finding.id, finding.severity) == ("label-noise", severity)
    if facts["label_noise"]["agreement"] < 0.6:
        assert "could not be checked" in finding.sentence
    elif severity != "ok":
        assert "the surest a.jsonl:7: `x`, probably `y`" in finding.sentence


def test_labels_that_were_not_looked_at_are_not_praised() -> None:
    assert check_label_noise({"label_noise": {"rows": 0, "why": "off"}}) is None
    assert check_label_noise({}) is None


def words(rows: int = 1000, **sets: Facts) -> Facts:
    return {
        "languages": {
            name: {"rows": rows, "languages": shares, "scripts": {}, "emoji": 0.0}
            for name, shares in sets.items()
        }
    }


@pytest.mark.parametrize(
    ("train", "test", "severity"),
    [
        ({"en": 1.0}, {"en": 0.9, "unknown": 0.1}, "ok"),
        ({"en": 1.0}, {"en": 1 - OTHER_LANGUAGE, "de": OTHER_LANGUAGE}, "ok"),
        ({"en": 1.0}, {"en": 0.88, "de": 0.12}, "note"),
        ({"en": 0.98, "de": 0.02}, {"de": 1.0}, "ok"),
        ({"en": 0.995, "de": 0.005}, {"de": 1.0}, "note"),
    ],
)
def test_whether_rows_are_judged_in_other_languages(
    train: Facts, test: Facts, severity: str
) -> None:
    finding = found(check_languages(words(train=train, validation=train, test=test)))
    assert (finding.id, finding.severity) == ("language-shift", severity)
    assert ("de" in finding.sentence.split()[-1]) == (severity == "note")


def test_few_rows_of_known_language_say_nothing() -> None:
    few = words(FEWEST_TOLD - 1, train={"en": 1.0}, test={"de": 1.0})
    assert check_languages(few) is None
    assert check_languages(words(train={"unknown": 1.0}, test={"de": 1.0})) is None
    assert check_languages({}) is None


@pytest.mark.parametrize(
    ("bad", "severity"),
    [(0, "ok"), (int(1000 * LOW_QUALITY), "ok"), (int(1000 * LOW_QUALITY) + 1, "note")],
)
def test_whether_many_rows_would_be_filtered(bad: int, severity: str) -> None:
    counts = {"shortest": bad // 3, "links": bad - bad // 3} if bad else {}
    facts = {"filters": {"counted": {"rows": 1000, "found": counts}}}
    finding = found(check_quality(facts))
    assert (finding.id, finding.severity) == ("low-quality-rows", severity)
    assert ("`data.filters.links`" in finding.advice) == (severity == "note")
    assert check_quality({}) is None


def fit(**changed: Any) -> Facts:
    plain = {
        "bytes_per_token": 4.0,
        "unknown": 0.0,
        "byte_tokens": 0.0,
        "reference": {"bytes_per_token": 4.0, "of": "english"},
        "lost": {"capitals": 0.0, "accents": 0.0},
        "emoji_lost_rows": 0.0,
        "emoji_named": ["😂"],
    }
    return {"preprocessing": plain | changed}


@pytest.mark.parametrize(
    ("facts", "task", "severities"),
    [
        (fit(), "causal-lm", ["ok"]),
        (fit(unknown=UNKNOWN), "causal-lm", ["ok"]),
        (fit(unknown=UNKNOWN + 0.001), "causal-lm", ["warning"]),
        (fit(byte_tokens=UNKNOWN + 0.001), "causal-lm", ["note"]),
        (fit(bytes_per_token=4 * COARSE), "causal-lm", ["ok"]),
        (fit(bytes_per_token=4 * COARSE - 0.1), "causal-lm", ["warning"]),
        (fit(lost={"capitals": 1.0, "accents": 0.0}), "seq2seq", ["warning"]),
        (fit(lost={"capitals": 1.0, "accents": 0.0}), "classification", ["ok"]),
        (fit(lost={"capitals": 0.0, "accents": LOST + 0.01}), "classification", ["note"]),
        (fit(emoji_lost_rows=LOST + 0.01), "classification", ["warning"]),
        (fit(emoji_lost_rows=0.9, unknown=0.3), "classification", ["warning", "warning"]),
    ],
)
def test_whether_the_tokenizer_fits(facts: Facts, task: str, severities: list[str]) -> None:
    findings = list(check_preprocessing(facts, task))
    assert [finding.severity for finding in findings] == severities
    assert {finding.id for finding in findings} == {"preprocessing-mismatch"}
    assert all(bool(each.advice) == (each.severity != "ok") for each in findings)


def test_a_run_from_before_these_checks_has_none_of_them() -> None:
    assert check_data({"train": {"rows": 3}, "leakage": {}}, "causal-lm") == []


@given(
    some.floats(0.1, 100),
    some.integers(0, 1000),
    some.floats(0, 1),
    some.floats(0, 1),
    some.floats(0.5, 8),
)
def test_any_figures_give_findings_that_can_be_written_down(
    ratio: float, sure: int, agreement: float, share: float, size: float
) -> None:
    facts = balance(ratio) | noise(sure, agreement=agreement)
    facts |= words(train={"en": 1.0}, test={"de": share, "en": 1 - share})
    facts |= fit(unknown=share, bytes_per_token=size, lost={"capitals": share, "accents": share})
    for finding in check_data(facts, "causal-lm"):
        assert json.loads(json.dumps(finding.facts, allow_nan=False)) == finding.facts
        assert bool(finding.advice) == (finding.severity != "ok")
        assert not finding.sentence.endswith(".")
