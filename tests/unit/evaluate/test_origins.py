"""Scores by origin are those of the same rows, and add up to the score of all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.example import Example
from peftkit.evaluate.evaluation import Evaluation
from peftkit.evaluate.generation import Answer
from peftkit.evaluate.losses import RowLosses
from peftkit.evaluate.origins import tell_origins_apart

SOURCES = {"a": "human", "b": "generated", "c": "human", "d": "unknown"}


def judged(sources: list[str], losses: list[float], tokens: list[int]) -> Evaluation:
    examples = [
        Example(np.arange(3), np.ones(3, np.bool_), "f:1", "d", "t", answer="yes", source=source)
        for source in sources
    ]
    counts = np.array(tokens, np.int64)
    answers = [Answer("yes" if source == "a" else "no", 1, stopped=True) for source in sources]
    return Evaluation(examples, RowLosses(np.array(losses), counts, counts), answers)


rows = some.lists(
    some.tuples(some.sampled_from("abcd"), some.floats(0, 50), some.integers(1, 9)), min_size=1
)


@given(rows=rows)
def test_the_parts_add_up_to_the_whole(rows: list[tuple[str, float, int]]) -> None:
    sources, losses, tokens = map(list, zip(*rows, strict=True))
    evaluation = judged(sources, losses, tokens)
    found = tell_origins_apart(evaluation, evaluation, SOURCES)
    if set(sources) == {"d"}:
        assert found == []
        return
    assert sum(each["rows"] for each in found) == len(rows)
    assert [each["origin"] for each in found] == list(dict.fromkeys(SOURCES[s] for s in sources))
    weights = [
        sum(t for s, _, t in rows if SOURCES[s] == each["origin"]) / sum(tokens) for each in found
    ]
    for side in ("base", "adapted"):
        mean = sum(w * each[side]["loss"] for w, each in zip(weights, found, strict=True))
        assert mean == pytest.approx(evaluation.rows.per_token)
    right = sum(each["rows"] * each["adapted"]["exact_match"] for each in found)
    assert right == pytest.approx(sources.count("a"))


def test_base_and_adapted_are_told_apart() -> None:
    before, after = judged(["a", "b"], [4.0, 6.0], [2, 2]), judged(["a", "b"], [2.0, 6.0], [2, 2])
    human, generated = tell_origins_apart(before, after, SOURCES)
    assert (human["base"]["loss"], human["adapted"]["loss"]) == (2.0, 1.0)
    assert (generated["base"], generated["adapted"]) == (generated["adapted"], generated["base"])
    assert (human["adapted"]["exact_match"], generated["adapted"]["exact_match"]) == (1.0, 0.0)
