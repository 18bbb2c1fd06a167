"""What a set's tokens add up to: those learned by who says them, those cut, the stops."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from peftkit.data.example import Example


def count_tokens(examples: Iterable[Example]) -> dict[str, Any]:
    """Figures of a set for `data.json`, one pass over its examples."""
    learned: Counter[str] = Counter()
    totals = dict.fromkeys(("cut_tokens", "cut_answers", "stops_trained", "control_as_text"), 0)
    for example in examples:
        totals["cut_tokens"] += example.cut
        totals["cut_answers"] += example.cut_answers
        totals["stops_trained"] += example.stops
        totals["control_as_text"] += example.typed
        places = pairwise(accumulate((tokens for _, tokens in example.sections), initial=0))
        for (role, _), (start, end) in zip(example.sections, places, strict=True):
            learned[role] += int(example.trained[start:end].sum())
    by_role = {role: tokens for role, tokens in sorted(learned.items()) if tokens}
    return {"trained_by_role": by_role, **totals}
