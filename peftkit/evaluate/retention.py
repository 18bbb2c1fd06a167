"""A merge beside its base and its parents on the same rows: what is kept, and how sure that is.

A loss has no zero that means "nothing learned", so how good a model is counts against the base: a
share of right answers by the share that the base gets, a loss by the ratio of perplexities. Of what
a parent gained over the base, a merge retains a part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.evaluate.compare import compare, draw_ratio, interval, resample
from peftkit.evaluate.metrics import FIGURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from peftkit.evaluate.evaluation import Evaluation

BASE, MERGED = "base", "merged"
"""What the models of a comparison are called that are no parents."""
KEPT = 0.8
"""Share of its best parent's gain that a task must keep."""
HIGHEST_LOSS = 1e4
"""Stands for a loss that is no number: a model that is broken is worse than any other."""


def metric_of(evaluation: Evaluation) -> str:
    """What a set is judged by: the share of right decisions where there are any, else the loss."""
    decides = evaluation.task.name in FIGURES and evaluation.right is not None
    return evaluation.metric if decides else "loss"


def score_of(evaluation: Evaluation) -> float:
    """The figure that a set is judged by."""
    right = evaluation.right
    if metric_of(evaluation) != "loss" and right is not None:
        return float(right.mean())
    loss = evaluation.rows.per_token
    return min(loss, HIGHEST_LOSS) if math.isfinite(loss) else HIGHEST_LOSS


def performance(score: float, base: float, metric: str) -> float:
    """How good it is as a share of the base; above 1 it is better.

    For a loss this is the base's perplexity by the model's, which is above any bound as the loss
    falls and 0 as it grows. Where the base gets nothing right, whatever is right is enough.
    """
    if metric == "loss":
        return math.exp(min(base - score, 700.0))
    return score / base if base else 1.0


def retain(
    models: Mapping[str, Evaluation], helping: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """The figures of one set: each model against the base, the merge also against its parents.

    Args:
        models: what each did on the rows, the base, the merge and the parents among them.
        helping: the parents that the merge should keep something of: those that are not taken away.
        seed: of the resampling.
    """
    base, merged = models[BASE], models[MERGED]
    metric = metric_of(base)
    scores = {name: score_of(found) for name, found in models.items()}
    sign = -1 if metric == "loss" else 1
    able = [name for name in helping if name in models]
    best = max(able, key=lambda name: sign * scores[name]) if able else None
    others = [name for name in models if name != BASE]
    return {
        "metric": metric,
        "rows": len(base.examples),
        "models": {name: found.summary for name, found in models.items()},
        "against_base": {name: compare(base, models[name], seed=seed) for name in others},
        "against_best_parent": compare(models[best], merged, seed=seed) if best else None,
        "best_parent": best,
        "performance": {name: _performance(base, models[name], metric, seed) for name in others},
        "retained": _retained(base, models[best], merged, metric, seed) if best else None,
    }


def _performance(base: Evaluation, model: Evaluation, metric: str, seed: int) -> dict[str, float]:
    draws = resample(len(base.examples), seed)
    if metric == "loss":
        change = draw_ratio(model.rows.losses - base.rows.losses, base.rows.tokens, draws)
        shares = np.exp(np.clip(-change, None, 700.0))
    else:
        before, after = (_right(each)[draws].mean(axis=1) for each in (base, model))
        shares = np.where(before > 0, after / np.where(before > 0, before, 1.0), 1.0)
    low, high = interval(shares)
    share = performance(score_of(model), score_of(base), metric)
    return {"share": share, "low": low, "high": high}


def _retained(
    base: Evaluation, parent: Evaluation, merged: Evaluation, metric: str, seed: int
) -> dict[str, float] | None:
    """The part of the parent's gain that is left; None where the gain may be chance."""
    draws = resample(len(base.examples), seed)
    gains = [_gain(base, model, metric) for model in (merged, parent)]
    drawn = [gain[draws].sum(axis=1) for gain in gains]
    if interval(drawn[1])[0] <= 0:
        return None
    low, high = interval(drawn[0] / np.where(drawn[1] > 0, drawn[1], np.inf))
    return {"share": float(gains[0].sum() / gains[1].sum()), "low": low, "high": high}


def _gain(base: Evaluation, model: Evaluation, metric: str) -> NDArray[np.float64]:
    """By how much each row got better; their weights are the same for all models."""
    if metric == "loss":
        gain: NDArray[np.float64] = base.rows.losses - model.rows.losses
        return gain
    return _right(model) - _right(base)


def _right(evaluation: Evaluation) -> NDArray[np.float64]:
    found = evaluation.right
    assert found is not None  # noqa: S101 - for the type checker; the metric says so
    return found
