"""A mixture is judged by what was trained on, beside what was asked for."""

from typing import Any

import pytest

from peftkit.diagnose.shares import check_mixture


def found(share: float, times: float, asked: float = 0.2) -> dict[str, Any]:
    seen = [
        {"source": "a.jsonl", "share_of_tokens": 1 - share, "times": 1.0},
        {"source": "b.jsonl", "share_of_tokens": share, "times": times},
    ]
    mixture = [
        {"source": "a.jsonl", "share_of_tokens": 1 - asked},
        {"source": "b.jsonl", "share_of_tokens": asked},
    ]
    findings = check_mixture({"seen": {"sources": seen}}, {"mixture": mixture})
    return {each.id: each for each in findings}


def test_a_mixture_as_asked_is_fine() -> None:
    findings = found(share=0.205, times=3.9)
    assert {name: each.severity for name, each in findings.items()} == {
        "mixture": "ok",
        "repeated": "ok",
    }
    assert findings["mixture"].figure == pytest.approx(0.025)
    assert "`b.jsonl` was 20.5 % of the tokens, and 20.0 % was asked for" in (
        findings["mixture"].sentence
    )


def test_a_share_that_was_not_reached_is_told() -> None:
    assert found(share=0.1, times=1.0)["mixture"].severity == "warning"


def test_rows_that_come_again_and_again_are_told() -> None:
    finding = found(share=0.2, times=4.1)["repeated"]
    assert finding.severity == "warning"
    assert finding.sentence == "each row of `b.jsonl` was seen 4.1 times"


def test_rows_shuffled_together_are_no_mixture() -> None:
    assert check_mixture({"seen": {"sources": []}}, {"mixture": None}) == []


def test_a_source_of_which_nothing_was_left_was_asked_for_nothing() -> None:
    """Its rows may all have been duplicates of another source's."""
    assert found(share=0.0, times=0.0, asked=0.0)["mixture"].severity == "ok"
