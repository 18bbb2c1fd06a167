"""Adapted against base on the same rows: the change, how sure it is, and the sentence to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from peftkit.evaluate.evaluation import Evaluation

FEWEST = 20
"""Rows below which an interval from resampling is too narrow to be believed."""
RESAMPLES = 2000
COVERAGE = 0.95
SHARES = {
    "exact_match": "exact match",
    "accuracy": "accuracy",
    "exact_set": "the share of rows with all labels right",
    "all_tags_right": "the share of rows with all tags right",
    "recall_at_1": "recall of the matching text at rank 1",
}
"""Shares of rows that went right, which tell more than a loss, and what they are called."""


def compare(base: Evaluation, adapted: Evaluation, *, seed: int) -> dict[str, dict[str, float]]:
    """For each metric: both figures, their change and its 95 % paired bootstrap interval."""
    draws = resample(len(base.examples), seed)
    tokens = base.rows.tokens
    changes = {
        "loss": ratio_interval(adapted.rows.losses - base.rows.losses, tokens, draws),
    }
    figures = {"loss": (base.rows.per_token, adapted.rows.per_token)}
    if (before := base.right) is not None and (after := adapted.right) is not None:
        changes[adapted.metric] = ratio_interval(after - before, np.ones_like(after), draws)
        figures[adapted.metric] = (float(before.mean()), float(after.mean()))
    return {
        name: {"base": old, "adapted": new, "change": new - old}
        | {"low": changes[name][0], "high": changes[name][1]}
        for name, (old, new) in figures.items()
    }


def resample(rows: int, seed: int) -> NDArray[np.int64]:
    """(resamples, rows) row numbers drawn with replacement."""
    return np.random.default_rng([seed, rows]).integers(0, rows, (RESAMPLES, rows))


def ratio_interval(
    totals: NDArray[np.float64], weights: NDArray[Any], draws: NDArray[np.int64]
) -> tuple[float, float]:
    """Percentile interval of sum(totals) / sum(weights) over resampled rows."""
    return interval(draw_ratio(totals, weights, draws))


def draw_ratio(
    totals: NDArray[np.float64], weights: NDArray[Any], draws: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sum(totals) / sum(weights) of each resampling."""
    drawn: NDArray[np.float64] = totals[draws].sum(axis=1) / weights[draws].sum(axis=1)
    return drawn


def interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The percentile interval of a figure, from what it was in each resampling."""
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def judge(
    difference: Mapping[str, Mapping[str, Mapping[str, float]]], rows: int, unit: str = "token"
) -> dict[str, str]:
    """Whether the adapter helped, and the honest sentence: test rows first, answers before loss."""
    where = "test" if "test" in difference else "validation"
    figures = difference[where]
    name = next((name for name in SHARES if name in figures), "loss")
    change = figures[name]
    helped = _direction(change, better=-1 if name == "loss" else 1)
    if helped == "unclear" and name != "loss" and change["change"] == 0:
        name, change = "loss", figures["loss"]  # no answer changed; the loss may still tell
        helped = _direction(change, better=-1)
    if rows < FEWEST:
        helped = "unclear"
    opening = {
        "yes": "the adapter helped",
        "no": "the adapter made it worse",
        "unclear": "no clear effect",
    }[helped]
    few = f"; {rows} are too few to be sure, {FEWEST} would do" if rows < FEWEST else ""
    said = _say(name, unit, change, f"{rows} {where} rows")
    return {"helped": helped, "sentence": f"{opening}: {said}{few}"}


def _direction(change: Mapping[str, float], *, better: int) -> str:
    low, high = sorted((better * change["low"], better * change["high"]))
    if low > 0:
        return "yes"
    return "no" if high < 0 else "unclear"


def _say(name: str, unit: str, change: Mapping[str, float], rows: str) -> str:
    """How one figure went, on so many rows, with the interval of its change."""
    if name == "loss":
        what, each, after = f"loss per {unit}", "{:.3f}", "{:+.3f} to {:+.3f}"
        figures = change
    else:
        what, each, after = SHARES[name], "{:.1f} %", "{:+.1f} to {:+.1f} points"
        figures = {key: 100 * value for key, value in change.items()}
    went = f"{each.format(figures['base'])} to {each.format(figures['adapted'])}"
    interval = after.format(figures["low"], figures["high"])
    return f"{what} on {rows} went from {went} (95 % interval of the change: {interval})"
