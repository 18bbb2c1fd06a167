"""A linear probe: logistic regression on frozen features, and what it says of rows it never saw.

The loss is that of scikit-learn's `LogisticRegression`, and so are its minima; here it stands to
save that dependency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

STRENGTHS = (0.1, 0.01, 0.001)
"""How much a row counts against the size of the weights (`C` in scikit-learn), to choose from.

A thousand rows of some hundred features are learnt by heart at scikit-learn's default of 1.
"""
ITERATIONS = 200


@dataclass(frozen=True, slots=True)
class Probe:
    """Weights of each class on features brought to mean 0 and deviation 1."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    weights: NDArray[np.float64]
    """(width, classes)"""
    bias: NDArray[np.float64]

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(rows, classes) how likely each class is."""
        scores = (features - self.mean) / self.deviation @ self.weights + self.bias
        scores -= scores.max(axis=1, keepdims=True)
        odds = np.exp(scores)
        shares: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
        return shares


def fit_probe(
    features: NDArray[np.float32],
    classes: NDArray[np.int64],
    count: int,
    strength: float,
) -> Probe:
    """The probe that tells the classes 0 to `count` - 1 apart; starts at 0, so nothing is drawn."""
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    deviation[deviation < 1e-12] = 1.0  # what is the same for all rows tells nothing
    rows = torch.from_numpy((features - mean) / deviation)
    goals = torch.from_numpy(classes)
    weights = torch.zeros(rows.shape[1], count, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weights, bias],
        max_iter=ITERATIONS,
        tolerance_grad=1e-5,  # of a mean loss: the third digit of a probability no longer moves
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        search.zero_grad()
        spread = 0.5 * (weights**2).sum() / strength
        found = (cross_entropy(rows @ weights + bias, goals, reduction="sum") + spread) / len(rows)
        found.backward()
        return found

    with torch.enable_grad():
        search.step(loss)
    return Probe(mean, deviation, weights.detach().numpy(), bias.detach().numpy())


def predict_unseen(
    features: NDArray[np.float32],
    classes: NDArray[np.int64],
    count: int,
    folds: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(rows, classes) what a probe says of each row that was fitted on the other folds.

    Its strength is the one whose answers surprise least: of one that is too strong, every row that
    it cannot tell would look surely wrong.
    """

    def predict(strength: float) -> NDArray[np.float64]:
        found = np.zeros((len(features), count), np.float64)
        for fold in range(int(folds.max()) + 1):
            own = folds == fold
            probe = fit_probe(features[~own], classes[~own], count, strength)
            found[own] = probe.probabilities(features[own])
        return found

    tried = [predict(strength) for strength in STRENGTHS]
    return min(tried, key=lambda found: surprise(found, classes))


def surprise(probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    """Mean nats by which the classes surprise who expected these probabilities."""
    own = probabilities[np.arange(len(classes)), classes]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


def fold_rows(classes: NDArray[np.int64], keys: Sequence[str], folds: int) -> NDArray[np.int64]:
    """A fold for each row: as many of each class in each, copies of a row in the same one."""
    found = np.zeros(len(classes), np.int64)
    for label in np.unique(classes):
        own = np.flatnonzero(classes == label)
        named = [keys[row] for row in own.tolist()]
        places = {key: place for place, key in enumerate(sorted(set(named)))}
        found[own] = [places[key] % folds for key in named]
    return found
