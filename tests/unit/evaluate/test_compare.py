"""Whether an adapter helped: an interval that covers what it should, and a sentence to match."""

from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.example import Example
from peftkit.evaluate.compare import RESAMPLES, compare, judge, ratio_interval, resample
from peftkit.evaluate.evaluation import Evaluation
from peftkit.evaluate.generation import Answer
from peftkit.evaluate.losses import RowLosses

losses = some.lists(some.floats(0.1, 10), min_size=2, max_size=12)


def evaluation(losses: Any, tokens: Any | None = None, said: list[str] | None = None) -> Evaluation:
    counts = np.ones(len(losses), np.int64) if tokens is None else np.asarray(tokens)
    pair = (np.zeros(2, np.int32), np.array([False, True]))
    examples = [Example(*pair, "f:1", "d", "t", 1, "ask", "yes") for _ in losses]
    answers = [Answer(text, 1, stopped=True) for text in said or ()]
    return Evaluation(examples, RowLosses(np.asarray(losses, float), counts, counts), answers)


def test_the_interval_of_a_mean_is_that_of_the_closed_form() -> None:
    """On many rows it is mean ± 1.96 standard errors; 2000 draws know its ends to 3 %."""
    values = np.random.default_rng(0).normal(0.3, 2.0, 1000)
    low, high = ratio_interval(values, np.ones(1000), resample(1000, seed=0))
    error = 1.959964 * values.std() / sqrt(1000)
    assert low == pytest.approx(values.mean() - error, abs=0.12 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.12 * error)


def test_the_interval_of_a_ratio_is_that_of_the_closed_form() -> None:
    """Rows differ in length: the delta method, with the covariance of losses and tokens."""
    draw = np.random.default_rng(1)
    tokens = draw.integers(1, 200, 1000)
    totals = tokens * draw.normal(1.5, 0.5, 1000)
    ratio = totals.sum() / tokens.sum()
    error = 1.959964 * (totals - ratio * tokens).std() / tokens.mean() / sqrt(1000)
    low, high = ratio_interval(totals, tokens, resample(1000, seed=0))
    assert low == pytest.approx(ratio - error, abs=0.12 * error)
    assert high == pytest.approx(ratio + error, abs=0.12 * error)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 200 samples, 95 % ± 4 standard deviations, less the bootstrap's bias on 60 rows."""
    draw = np.random.default_rng(2)
    draws = resample(60, seed=0)
    covered = 0
    for _ in range(200):
        low, high = ratio_interval(draw.normal(1.0, 1.0, 60), np.ones(60), draws)
        covered += low <= 1.0 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200


@given(before=losses, seed=some.integers(0, 99), data=some.data())
def test_a_comparison_is_paired_and_the_same_every_time(
    before: list[float], seed: int, data: some.DataObject
) -> None:
    """The same change in every row is known exactly, however much the rows differ."""
    shift = data.draw(some.floats(-1, 1))
    base = evaluation(before)
    adapted = evaluation([loss + shift for loss in before])
    found = compare(base, adapted, seed=seed)["loss"]
    assert found == compare(base, adapted, seed=seed)["loss"]
    for name in ("change", "low", "high"):
        assert found[name] == pytest.approx(shift, abs=1e-9)
    assert found["base"] == pytest.approx(np.mean(before))
    assert found["adapted"] == pytest.approx(np.mean(before) + shift)


@given(before=losses, data=some.data())
def test_turning_the_comparison_round_turns_the_interval_round(
    before: list[float], data: some.DataObject
) -> None:
    count = len(before)
    after = data.draw(some.lists(some.floats(0.1, 10), min_size=count, max_size=count))
    tokens = data.draw(some.lists(some.integers(1, 50), min_size=count, max_size=count))
    one, other = evaluation(before, tokens), evaluation(after, tokens)
    there, back = compare(one, other, seed=0)["loss"], compare(other, one, seed=0)["loss"]
    assert there["change"] == pytest.approx(-back["change"], abs=1e-9)
    assert there["low"] == pytest.approx(-back["high"], abs=1e-9)
    assert there["high"] == pytest.approx(-back["low"], abs=1e-9)
    assert there["low"] <= there["high"]


def test_long_rows_weigh_as_their_tokens() -> None:
    found = compare(evaluation([3.0, 9.0], [1, 3]), evaluation([1.0, 7.0], [1, 3]), seed=0)["loss"]
    assert (found["base"], found["adapted"], found["change"]) == (3.0, 2.0, -1.0)


def test_answers_are_compared_where_both_have_them() -> None:
    base = evaluation([1.0] * 4, said=["no", "no", "yes", "no"])
    adapted = evaluation([1.0] * 4, said=["yes", "yes", "yes", "no"])
    found = compare(base, adapted, seed=0)["exact_match"]
    assert (found["base"], found["adapted"], found["change"]) == (0.25, 0.75, 0.5)
    assert found["low"] == 0.0
    assert found["high"] == 1.0
    assert "exact_match" not in compare(base, evaluation([1.0] * 4), seed=0)
    assert "exact_match" not in compare(evaluation([1.0] * 4), adapted, seed=0)


def test_draws_are_seeded_and_within_the_rows() -> None:
    draws = resample(7, seed=3)
    assert draws.shape == (RESAMPLES, 7)
    assert (draws.min(), draws.max()) == (0, 6)
    assert np.array_equal(draws, resample(7, seed=3))
    assert not np.array_equal(draws, resample(7, seed=4))


def figures(base: float, adapted: float, low: float, high: float) -> dict[str, float]:
    change = {"base": base, "adapted": adapted, "change": adapted - base}
    return change | {"low": low, "high": high}


LESS = figures(2.0, 1.5, -0.6, -0.4)
MORE = figures(2.0, 2.5, 0.4, 0.6)
SAME = figures(2.0, 1.99, -0.1, 0.08)
RIGHT = figures(0.2, 0.6, 0.3, 0.5)
WRONG = figures(0.6, 0.2, -0.5, -0.3)
EITHER = figures(0.5, 0.55, -0.1, 0.2)
NEVER = figures(0.0, 0.0, 0.0, 0.0)


LOWER = "loss per token on 40 validation rows went from 2.000 to 1.500"
HIGHER = "loss per token on 40 validation rows went from 2.000 to 2.500"
ALIKE = "loss per token on 40 validation rows went from 2.000 to 1.990"
BETTER = "exact match on 40 validation rows went from 20.0 % to 60.0 %"
WORSE = "exact match on 40 validation rows went from 60.0 % to 20.0 %"
MAYBE = "exact match on 40 validation rows went from 50.0 % to 55.0 %"


@pytest.mark.parametrize(
    ("found", "helped", "what", "interval"),
    [
        ({"loss": LESS}, "yes", LOWER, "-0.600 to -0.400"),
        ({"loss": MORE}, "no", HIGHER, "+0.400 to +0.600"),
        ({"loss": SAME}, "unclear", ALIKE, "-0.100 to +0.080"),
        ({"loss": MORE, "exact_match": RIGHT}, "yes", BETTER, "+30.0 to +50.0 points"),
        ({"loss": LESS, "exact_match": WRONG}, "no", WORSE, "-50.0 to -30.0 points"),
        ({"loss": LESS, "exact_match": EITHER}, "unclear", MAYBE, "-10.0 to +20.0 points"),
        # No answer changed, so the loss has the word.
        ({"loss": LESS, "exact_match": NEVER}, "yes", LOWER, "-0.600 to -0.400"),
    ],
)
def test_the_verdict_says_what_the_interval_says(
    found: dict[str, dict[str, float]], helped: str, what: str, interval: str
) -> None:
    opening = {
        "yes": "the adapter helped",
        "no": "the adapter made it worse",
        "unclear": "no clear effect",
    }[helped]
    assert judge({"validation": found}, 40) == {
        "helped": helped,
        "sentence": f"{opening}: {what} (95 % interval of the change: {interval})",
    }


def test_test_rows_have_the_last_word() -> None:
    verdict = judge({"validation": {"loss": LESS}, "test": {"loss": MORE}}, 40)
    assert verdict["helped"] == "no"
    assert "on 40 test rows" in verdict["sentence"]


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.0), (0.0, 0.1), (0.0, 0.0)])
def test_an_interval_that_touches_zero_is_unclear(low: float, high: float) -> None:
    assert judge({"validation": {"loss": figures(1, 1, low, high)}}, 9)["helped"] == "unclear"
