"""The probe is scikit-learn's logistic regression, and says nothing of rows it was fitted on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from peftkit.evaluate.probe import STRENGTHS, fit_probe, fold_rows, predict_unseen, surprise


def clouds(
    rows: int, classes: int, width: int, apart: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Gaussian clouds, one a class."""
    random = np.random.default_rng(seed)
    given = np.arange(rows) % classes
    centers = apart * random.standard_normal((classes, width))
    features = centers[given] + random.standard_normal((rows, width))
    return features.astype(np.float32), given


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("classes", [3, 7])
def test_it_is_scikit_learn_s(classes: int, strength: float) -> None:
    features, given = clouds(300, classes, 12, 0.7)
    probe = fit_probe(features[:200], given[:200], classes, strength)
    scale = StandardScaler().fit(features[:200])
    theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=2000)
    theirs.fit(scale.transform(features[:200]), given[:200])
    expected = theirs.predict_proba(scale.transform(features[200:]))
    found = probe.probabilities(features[200:])
    assert np.allclose(found.sum(axis=1), 1)
    assert np.abs(found - expected).max() < 2e-3
    ours = surprise(found, given[200:])
    assert ours == pytest.approx(log_loss(given[200:], expected, labels=range(classes)), abs=1e-3)


def test_features_that_say_nothing_do_no_harm() -> None:
    features, given = clouds(60, 2, 4, 2.0)
    padded = np.concatenate([features, np.full((60, 3), 5.0, np.float32)], axis=1)
    plain, with_more = (fit_probe(each, given, 2, 0.1) for each in (features, padded))
    found = plain.probabilities(features), with_more.probabilities(padded)
    assert np.allclose(*found, atol=1e-6)


def test_no_row_is_judged_by_a_probe_that_knew_it() -> None:
    """Labels drawn by chance are learnt by heart, but not foreseen."""
    random = np.random.default_rng(0)
    features = random.standard_normal((120, 200)).astype(np.float32)
    given = random.integers(0, 2, 120)
    keys = [str(number) for number in range(120)]
    unseen = predict_unseen(features, given, 2, fold_rows(given, keys, 5))
    known = fit_probe(features, given, 2, 0.1).probabilities(features)
    assert (known.argmax(axis=1) == given).mean() == 1
    assert (unseen.argmax(axis=1) == given).mean() < 0.65


def test_the_strength_is_chosen_by_what_is_unseen() -> None:
    """Clear clouds want a strong probe, chance a weak one that says nothing for certain."""
    features, given = clouds(200, 2, 5, 4.0)
    keys = [str(number) for number in range(200)]
    clear = predict_unseen(features, given, 2, fold_rows(given, keys, 5))
    assert surprise(clear, given) < 0.1
    chance = np.random.default_rng(1).integers(0, 2, 200)
    unclear = predict_unseen(features, chance, 2, fold_rows(chance, keys, 5))
    assert surprise(unclear, chance) < 0.75


@given(
    some.lists(some.tuples(some.integers(0, 3), some.integers(0, 30)), min_size=1, max_size=80),
    some.integers(2, 6),
)
def test_folds_hold_each_class_evenly_and_copies_together(
    rows: list[tuple[int, int]], folds: int
) -> None:
    classes = np.array([label for label, _ in rows], np.int64)
    keys = [f"{key:03}" for _, key in rows]
    found = fold_rows(classes, keys, folds)
    for label in set(classes.tolist()):
        own = [(keys[at], found[at]) for at in np.flatnonzero(classes == label)]
        assert len(set(own)) == len({key for key, _ in own})  # a key is in one fold
        sizes = np.bincount([fold for _, fold in set(own)], minlength=folds)
        assert sizes.max() - sizes.min() <= 1
