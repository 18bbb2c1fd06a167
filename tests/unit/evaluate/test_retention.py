"""What a merge retains: shares against hand-made rows, intervals, and where there is no share."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.data.example import Example
from peftkit.data.task import Task
from peftkit.evaluate.evaluation import Evaluation
from peftkit.evaluate.generation import Answer
from peftkit.evaluate.holdout import disagree, divide
from peftkit.evaluate.losses import RowLosses
from peftkit.evaluate.retention import performance, retain, score_of

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(5, 50, 60)
HARD = RANDOM.uniform(1, 3, 60)


def example(number: int) -> Example:
    ids = np.array([number, number], np.int32)
    text = f"row number {number}"
    return Example(ids, np.array([False, True]), f"rows:{number}", text, text)


def losses(per_token: Any) -> Evaluation:
    rows = RowLosses(np.asarray(per_token) * TOKENS, TOKENS, TOKENS)
    return Evaluation([example(number) for number in range(60)], rows)


def decided(hits: Any) -> Evaluation:
    task = Task("classification", ("cold", "hot"))
    ones = np.ones(60, np.int64)
    found = np.asarray(hits, np.float64)
    examples = [example(number) for number in range(60)]
    answers = [Answer("hot", 0, stopped=True)] * 60
    return Evaluation(examples, RowLosses(ones * 0.5, ones, ones), answers, task, found)


@given(part=st.floats(-1, 1.5))
def test_the_share_is_that_of_the_gain(part: float) -> None:
    """A merge whose every row gained the same part of what its parent's did."""
    gain = 0.3 + 0.2 * RANDOM.uniform(-1, 1, 60)
    models = {
        "base": losses(HARD),
        "chat": losses(HARD - gain),
        "code": losses(HARD - 0.1),
        "merged": losses(HARD - part * gain),
    }
    found = retain(models, ["chat", "code"], seed=0)
    assert found["best_parent"] == "chat"
    assert found["metric"] == "loss"
    for key in ("share", "low", "high"):
        assert found["retained"][key] == pytest.approx(part, abs=1e-9)
    change = found["against_base"]["merged"]["loss"]["change"]
    assert change == pytest.approx(-part * (gain * TOKENS).sum() / TOKENS.sum())
    against = found["against_best_parent"]["loss"]["change"]
    assert against == pytest.approx((1 - part) * (gain * TOKENS).sum() / TOKENS.sum())
    assert found["performance"]["merged"]["share"] == pytest.approx(math.exp(-change))


def test_right_decisions_are_what_counts_where_there_are_any() -> None:
    base, parent, merged = (np.arange(60) % 60 < right for right in (20, 50, 44))
    models = {"base": decided(base), "chat": decided(parent), "merged": decided(merged)}
    found = retain(models, ["chat"], seed=0)
    assert found["metric"] == "accuracy"
    assert found["retained"]["share"] == pytest.approx(24 / 30)
    assert found["retained"]["low"] < 0.8 < found["retained"]["high"] < 1
    assert found["performance"]["merged"]["share"] == pytest.approx(44 / 20)
    assert found["performance"]["merged"]["low"] < 2.2 < found["performance"]["merged"]["high"]


def test_where_no_parent_gained_there_is_nothing_to_retain() -> None:
    noise = RANDOM.normal(0, 0.5, (2, 60))
    models = {
        "base": losses(HARD),
        "chat": losses(HARD + noise[0] - noise[0].mean()),
        "merged": losses(HARD + noise[1]),
    }
    assert retain(models, ["chat"], seed=0)["retained"] is None
    alone = retain({"base": losses(HARD), "merged": losses(HARD)}, ["chat"], seed=0)
    assert (alone["best_parent"], alone["retained"]) == (None, None)


def test_performance_is_a_share_of_the_base() -> None:
    assert performance(2.0, 2.0, "loss") == 1
    assert performance(2.0 + math.log(1 / 0.95), 2.0, "loss") == pytest.approx(0.95)
    assert performance(0.57, 0.6, "accuracy") == pytest.approx(0.95)
    assert performance(0.0, 0.0, "accuracy") == 1


def test_a_loss_that_is_no_number_is_worse_than_any_other() -> None:
    broken = np.array([math.nan, *HARD[1:]])
    assert score_of(losses(HARD + 100)) < score_of(losses(broken)) == 1e4
    assert performance(score_of(losses(broken)), 2.0, "loss") == 0


@given(count=st.integers(2, 80), share=st.floats(0.05, 0.95))
def test_both_parts_are_all_rows_and_share_none(count: int, share: float) -> None:
    examples = [example(number // 2) for number in range(count)]  # each row twice, but the last
    texts = {each.text for each in examples}
    if len(texts) < 2:
        return
    sides = divide(examples, share, "chat")
    said = [{each.text for each in side} for side in sides]
    assert not said[0] & said[1]
    assert len(sides[0]) + len(sides[1]) == count
    assert abs(len(said[1]) - share * len(texts)) <= 1
    assert min(map(len, said)) >= 1
    turned = divide(examples[::-1], share, "chat")
    assert [{each.text for each in side} for side in turned] == said


def test_a_search_that_fits_its_own_rows_alone_is_told() -> None:
    noise = RANDOM.normal(0, 0.1, (2, 60))
    base = losses(HARD)
    fooled = disagree(
        (base, losses(HARD - 0.3 + noise[0])), (base, losses(HARD + noise[1])), seed=0
    )
    assert fooled["low"] > 0.2
    assert fooled["difference"] == pytest.approx(fooled["held"] - fooled["searched"])
    alike = disagree(
        (base, losses(HARD - 0.3 + noise[0])), (base, losses(HARD - 0.3 + noise[1])), seed=0
    )
    assert alike["low"] < 0 < alike["high"]
