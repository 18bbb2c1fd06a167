"""Figures of decisions, against scikit-learn and scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, f1_score

from peftkit.data.example import Example
from peftkit.data.task import Task
from peftkit.evaluate.metrics import (
    decide,
    f1_by_class,
    figures_of,
    hits_of,
    rank_correlation,
    spans_of,
)
from peftkit.evaluate.predictions import Predictions

LABELS = ("a", "b", "c")
pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)


def row(*labels: str, trained: int = 1) -> Example:
    tokens = np.arange(5, dtype=np.int32)
    return Example(tokens, np.arange(5) >= 5 - trained, "f:1", "d", "text", labels=labels)


def scored(numbers: list[int], width: int = 3) -> Predictions:
    """Predictions that decide for these classes."""
    return Predictions(np.zeros(len(numbers)), [np.eye(width)[number] for number in numbers])


@given(pairs)
def test_classes_are_scored_as_scikit_learn_does(found: list[tuple[int, int]]) -> None:
    truth, guess = [pair[0] for pair in found], [pair[1] for pair in found]
    rows = [row(LABELS[number]) for number in truth]
    task = Task("classification", LABELS)
    figures = figures_of(scored(guess), rows, task)
    hits = hits_of(scored(guess), rows, task)
    assert hits is not None
    assert hits.tolist() == [float(t == g) for t, g in found]
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    seen = sorted(set(truth))
    recalls = [np.mean([g == n for t, g in found if t == n]) for n in seen]
    assert figures["balanced_accuracy"] == pytest.approx(float(np.mean(recalls)))
    if len(set(truth)) > 1 and set(guess) <= set(truth):
        wanted = balanced_accuracy_score(truth, guess)
        assert figures["balanced_accuracy"] == pytest.approx(wanted)


@given(st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=20))
def test_labels_are_scored_as_scikit_learn_does(found: list[tuple[bool, ...]]) -> None:
    truth = np.array([each[:3] for each in found])
    guess = np.array([each[3:] for each in found])
    rows = [row(*(LABELS[n] for n in np.flatnonzero(each))) for each in truth]
    task = Task("multi-label", LABELS)
    predictions = Predictions(np.zeros(len(rows)), [np.where(each, 1.0, -1.0) for each in guess])
    figures = figures_of(predictions, rows, task)
    wanted = f1_score(truth, guess, average="micro", zero_division=0)
    assert figures["micro_f1"] == pytest.approx(wanted)
    hits = hits_of(predictions, rows, task)
    assert hits is not None
    assert hits.tolist() == [float((t == g).all()) for t, g in zip(truth, guess, strict=True)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_ranks_correlate_as_scipy_says(found: list[tuple[int, int]]) -> None:
    first, second = (np.array([pair[side] for pair in found], float) for side in (0, 1))
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert rank_correlation(first, second) == 0.0
    else:
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second)[0])


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O", set()),
        ("B-x I-x O", {("x", 0, 2)}),
        ("B-x B-x", {("x", 0, 1), ("x", 1, 2)}),
        ("I-x I-x", {("x", 0, 2)}),
        ("B-x I-y", {("x", 0, 1), ("y", 1, 2)}),
        ("O B-x I-x I-x", {("x", 1, 4)}),
    ],
)
def test_entities_are_found_as_conlleval_does(tags: str, spans: set[tuple[str, int, int]]) -> None:
    assert spans_of(tags.split()) == spans


def test_an_entity_counts_only_whole() -> None:
    labels = ("B-x", "I-x", "O")
    task = Task("token-classification", labels)
    truth = [row("B-x", "I-x", "O", trained=3), row("O", "B-x", trained=2)]
    guessed = [[0, 2, 2], [2, 0]]
    scores = [np.eye(3)[numbers] for numbers in guessed]
    figures = figures_of(Predictions(np.zeros(2), scores), truth, task)
    assert figures == {"tag_accuracy": 4 / 5, "span_f1": 2 * 1 / (2 + 2)}
    assert decide(Predictions(np.zeros(2), scores), truth, task) == ["B-x O O", "O B-x"]


def test_neighbors_are_ranked_among_all_rows() -> None:
    task = Task("embedding")
    scores = [np.array([0.9, 0.1, 0.2]), np.array([0.8, 0.5, 0.1]), np.array([0.1, 0.2, 0.3])]
    rows = [row() for _ in range(3)]
    hits = hits_of(Predictions(np.zeros(3), scores), rows, task)
    assert hits is not None
    assert hits.tolist() == [1.0, 0.0, 1.0]
    figures = figures_of(Predictions(np.zeros(3), scores), rows, task)
    assert figures == {"recall_at_10": 1.0, "mrr": pytest.approx((1 + 1 / 2 + 1) / 3)}


def test_vectors_that_are_all_alike_find_nothing() -> None:
    rows, scores = [row() for _ in range(50)], [np.ones(50) for _ in range(50)]
    predictions, task = Predictions(np.zeros(50), scores), Task("embedding")
    assert figures_of(predictions, rows, task) == {"recall_at_10": 0.0, "mrr": pytest.approx(0.02)}
    hits = hits_of(predictions, rows, task)
    assert hits is not None
    assert hits.sum() == 0


def test_numbers_are_compared_by_distance_and_rank() -> None:
    task, rows = Task("regression"), [row("1.0"), row("2.0"), row("4.0")]
    scores = [np.array([1.5]), np.array([2.0]), np.array([3.0])]
    predictions = Predictions(np.zeros(3), scores)
    figures = figures_of(predictions, rows, task)
    assert figures == {"mean_absolute_error": pytest.approx(0.5), "spearman": pytest.approx(1.0)}
    assert hits_of(predictions, rows, task) is None
    assert decide(predictions, rows, task) == ["1.5", "2", "3"]


def test_a_class_that_is_nowhere_has_no_f1() -> None:
    assert np.isnan(f1_by_class([0, 0], [0, 1], 3)[2])
