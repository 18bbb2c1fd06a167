"""How good the base and the adapted model are on the rows of each origin, from figures there are.

A model that learned from generated rows may do well on generated rows alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from peftkit.evaluate.evaluation import Evaluation

UNKNOWN = "unknown"


def tell_origins_apart(
    before: Evaluation, after: Evaluation, origins: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Figures of the same rows by origin, in the order the origins come; none if none is known.

    Args:
        before: what the base did on each row.
        after: what the adapted model did on them.
        origins: of each source, by its name.
    """
    rows = np.array([origins.get(example.source, UNKNOWN) for example in after.examples])
    named = list(dict.fromkeys(rows.tolist()))
    if named == [UNKNOWN]:
        return []
    return [
        {
            "origin": origin,
            "rows": int((rows == origin).sum()),
            "base": _figures(before, rows == origin),
            "adapted": _figures(after, rows == origin),
        }
        for origin in named
    ]


def _figures(evaluation: Evaluation, own: NDArray[np.bool_]) -> dict[str, float]:
    rows = evaluation.rows
    found = {"loss": float(rows.losses[own].sum() / rows.tokens[own].sum())}
    right = evaluation.right
    return found if right is None else found | {evaluation.metric: float(right[own].mean())}
