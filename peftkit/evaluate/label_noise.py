"""Rows whose label is probably wrong, by confident learning (Northcutt et al., 2021).

A probe that never saw a row says how likely each class is. A class is confident of a row if it is
at least as likely as it is, on average, on the rows that bear its label; a row of which another
class is confident, more than any, is counted there in the confident joint and is suspected. Means
by class let a class of which the probe is never sure be found as well as one that is easy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.quality import spread
from peftkit.evaluate.features import features_of
from peftkit.evaluate.probe import fold_rows, predict_unseen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example
    from peftkit.data.task import Task

FOLDS = 5
FEWEST = 10
"""Rows of a class below which a probe learns nothing of it: two in each fold."""
LISTED = 50
"""Suspected rows named in `data.json`, the surest first."""
SURE = 0.5
"""How much likelier another class must be than the given one for a row to count as surely wrong."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What confident learning says of some rows."""

    suspected: NDArray[np.int64]
    """Rows, the surest first."""
    classes: NDArray[np.int64]
    """The class that each of them is suspected to be of."""
    margins: NDArray[np.float64]
    """How much likelier that class is than the given one."""
    joint: NDArray[np.float64]
    """(given, true) estimated share of all rows."""

    @property
    def noise(self) -> float:
        """Estimated share of wrong labels."""
        return float(1 - np.trace(self.joint))


def suspect(probabilities: NDArray[np.float64], given: NDArray[np.int64]) -> Suspicion:
    """The rows whose label is probably wrong, from what a probe says that never saw them."""
    count = probabilities.shape[1]
    rows = np.arange(len(given))
    owned = np.bincount(given, minlength=count)
    own = np.bincount(given, weights=probabilities[rows, given], minlength=count)
    thresholds = np.where(owned > 0, own / np.maximum(owned, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    likely = confident.argmax(axis=1)
    sure = confident.max(axis=1) >= 0
    joint = np.zeros((count, count))
    np.add.at(joint, (given[sure], likely[sure]), 1.0)
    totals = joint.sum(axis=1, keepdims=True)
    joint = np.where(totals > 0, joint / np.maximum(totals, 1), np.eye(count)) * owned[:, None]
    wrong = np.flatnonzero(sure & (likely != given))
    margins = probabilities[wrong, likely[wrong]] - probabilities[wrong, given[wrong]]
    order = np.lexsort((wrong, -margins))
    return Suspicion(
        wrong[order], likely[wrong[order]], margins[order], joint / max(joint.sum(), 1)
    )


def find_label_noise(
    model: Any, examples: Sequence[Example], task: Task, pad_id: int, limit: int
) -> dict[str, Any]:
    """What `data.json` says of labels that are probably wrong, of at most `limit` rows.

    Only rows with one label each are looked at, and only classes that have enough of them.
    """
    looked_at = spread(examples, limit)
    labels = [example.labels[0] if len(example.labels) == 1 else "" for example in looked_at]
    counts = {label: labels.count(label) for label in task.labels}
    known = [label for label in task.labels if counts[label] >= FEWEST]
    if task.name != "classification" or len(known) < 2:
        return {"rows": 0, "why": f"fewer than two classes have {FEWEST} rows to learn from"}
    judged = [row for row, label in zip(looked_at, labels, strict=True) if label in known]
    given = np.array([known.index(row.labels[0]) for row in judged], np.int64)
    folds = fold_rows(given, [row.key for row in judged], FOLDS)
    features = features_of(model, judged, task, pad_id)
    probabilities = predict_unseen(features, given, len(known), folds)
    found = suspect(probabilities, given)
    return {
        "rows": len(judged),
        "of": len(examples),
        "agreement": float((probabilities.argmax(axis=1) == given).mean()),
        "majority": float(np.bincount(given).max() / len(given)),
        "estimated": round(found.noise, 4),
        "suspected": len(found.suspected),
        "sure": int((found.margins > SURE).sum()),
        "listed": [
            {
                "where": judged[row].where,
                "given": known[given[row]],
                "suspected": known[likely],
                "confidence": round(float(margin), 4),
            }
            for row, likely, margin in zip(
                found.suspected[:LISTED].tolist(),
                found.classes.tolist(),
                found.margins.tolist(),
                strict=False,
            )
        ],
    }
