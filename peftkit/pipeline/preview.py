"""Rows as the model will see them, before anything is loaded but the tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.data.task import WRITES
from peftkit.pipeline.setup import set_up

if TYPE_CHECKING:
    from peftkit.data.example import Example
    from peftkit.pipeline.setup import Setup
    from peftkit.recipe.schema import Recipe


def preview(recipe: Recipe, rows: int) -> dict[str, Any]:
    """The first training rows token by token, and the totals that `data.json` will hold.

    Of changed copies the first are shown as well.
    """
    setup = set_up(recipe)
    facts = setup.data.facts
    shown = [*setup.data.train.examples[:rows], *setup.data.augmented.examples[:rows]]
    return {
        "rows": [_describe(example, setup) for example in shown],
        "totals": {name: facts[name] for name in ("train", "validation", "test")},
    }


def _describe(example: Example, setup: Setup) -> dict[str, Any]:
    ids = example.tokens.tolist()
    writes, tagged = setup.task.name in WRITES, setup.task.name == "token-classification"
    labels = iter(example.labels)
    last = next((place for place in reversed(range(len(ids))) if example.trained[place]), 0)
    return {
        "where": example.where,
        "changed": setup.data.augmented.changes.get(example.where, ""),
        "trained_tokens": example.trained_tokens,
        "stop_trained": ids[last] in setup.stops if setup.stops and writes else None,
        "labels": None if writes else list(example.labels),
        "cut": example.cut,
        "tokens": [
            {
                "text": setup.tokenizer.decode([token]),
                "id": token,
                "trained": bool(trained),
                "label": next(labels, None) if tagged and trained else None,
            }
            for token, trained in zip(ids, example.trained.tolist(), strict=True)
        ],
    }
