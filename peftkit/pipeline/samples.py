"""What the model wrote before and after, for a person to read: mistakes first, where there are any.

The samples are not a fair draw: up to half are rows that went wrong, because those teach more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.pipeline.judge import opening

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from peftkit.pipeline.judge import Judged
    from peftkit.pipeline.setup import Setup
    from peftkit.recipe.schema import Recipe


def gather_samples(
    recipe: Recipe, setup: Setup, before: Judged, after: Judged
) -> list[dict[str, Any]]:
    """What `samples.json` says: answers with whether they are right, or continuations of text."""
    right = after.shown.right
    if right is None:
        return _continuations(setup, before, after)
    return [
        {
            "where": example.where,
            "prompt": example.prompt,
            "expected": example.answer,
            "before": before.shown.answers[row].text,
            "after": after.shown.answers[row].text,
            "right": bool(right[row]),
        }
        for row in choose_samples(right, recipe.evaluate.samples)
        for example in [after.shown.examples[row]]
    ]


def choose_samples(right: NDArray[np.float64], count: int) -> list[int]:
    """Row numbers to show: wrong ones up to half, filled up with right ones, in file order."""
    wrong = [row for row in range(len(right)) if not right[row]]
    fine = [row for row in range(len(right)) if right[row]]
    mistakes = wrong[: max(count // 2, count - len(fine))]
    return sorted([*mistakes, *fine[: count - len(mistakes)]])


def _continuations(setup: Setup, before: Judged, after: Judged) -> list[dict[str, Any]]:
    examples: Sequence[Any] = after.shown.examples[: len(after.continuations)]
    return [
        {
            "where": example.where,
            "prompt": setup.tokenizer.decode(opening(example), skip_special_tokens=True),
            "expected": None,
            "before": old.text,
            "after": new.text,
            "right": None,
        }
        for example, old, new in zip(
            examples, before.continuations, after.continuations, strict=True
        )
    ]
