"""Rows as the model will see them, before anything is loaded but the tokenizer."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from peftkit.data.augment import key_of
from peftkit.data.formats import build_examples
from peftkit.data.rows import Intake
from peftkit.data.sources import find_files, read_rows
from peftkit.data.task import WRITES
from peftkit.pipeline.setup import make_encoder, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.data.example import Example
    from peftkit.pipeline.setup import Setup
    from peftkit.recipe.schema import Recipe

NO_LIMIT = 2**31
"""Tokens that no row has."""


def preview(recipe: Recipe, rows: int, *, fresh_data: bool = False) -> dict[str, Any]:
    """The first training rows token by token, and the totals that `data.json` will hold.

    Of changed copies the first are shown as well.
    """
    setup = set_up(recipe, fresh_data=fresh_data)
    facts = setup.data.facts
    shown = [*setup.data.train.examples[:rows], *setup.data.augmented.examples[:rows]]
    return {
        "rows": [
            _describe(example, _find_whole(example, recipe, setup), setup) for example in shown
        ],
        "totals": {name: facts[name] for name in ("train", "validation", "test")},
    }


def _describe(example: Example, whole: Example, setup: Setup) -> dict[str, Any]:
    ids = example.tokens.tolist()
    writes = setup.task.name in WRITES
    last = next((place for place in reversed(range(len(ids))) if example.trained[place]), 0)
    return {
        "where": example.where,
        "format": example.format,
        "changed": setup.data.augmented.changes.get(key_of(example), ""),
        "trained_tokens": example.trained_tokens,
        "stop_trained": ids[last] in setup.stops if setup.stops and writes else None,
        "labels": None if writes else list(example.labels),
        "cut": example.cut,
        "cut_answers": example.cut_answers,
        "control_as_text": example.typed,
        "tokens": list(_tokens(example, whole, setup)),
    }


def _tokens(example: Example, whole: Example, setup: Setup) -> Iterator[dict[str, Any]]:
    """Each token, with those that were cut off after the ones that were not."""
    tagged = setup.task.name == "token-classification"
    labels = iter(example.labels)
    roles = [role for role, tokens in whole.sections for _ in range(tokens)]
    for place, (token, role) in enumerate(zip(whole.tokens.tolist(), roles, strict=True)):
        cut = place >= example.length
        trained = not cut and bool(example.trained[place])
        yield {
            "text": setup.tokenizer.decode([token]),
            "id": token,
            "role": role,
            "trained": trained,
            "label": next(labels, None) if tagged and trained else None,
            "cut": cut,
        }


def _find_whole(example: Example, recipe: Recipe, setup: Setup) -> Example:
    """The row before its end was cut off, read once more; as it is where that cannot be found."""
    if not example.cut or setup.task.name != "causal-lm":
        return example
    encoder = make_encoder(setup.base, recipe.data, setup.tokenizer, setup.stops)
    for source in recipe.data.train:
        files = find_files(source, setup.reading.commits)
        rows = read_rows(source, Intake("skip"), files)
        found = (row for row in rows if row.digest == example.digest)
        unlimited = replace(encoder.for_source(source), max_length=NO_LIMIT)
        made = build_examples(
            islice(found, 1), example.format, example.source, unlimited, Intake("skip")
        )
        for whole in made:
            if whole.tokens[: example.length].tolist() == example.tokens.tolist():
                return whole
    return example
