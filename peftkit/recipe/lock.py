"""Tell whether two recipes mean the same run, so that a run folder never mixes two.

Not compared: how a run is named, published, saved and shown, and what only moves work around
without changing a sum but for rounding. Of a local file or folder only the name counts, because
a run may go on in another place; what is in it is locked by content, beside this digest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.recipe.paths import map_paths
from peftkit.recipe.sections.stages import SECTIONS
from peftkit.recipe.spelling import flow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.recipe.schema import Recipe

FREE = frozenset(
    {
        "name",
        "publish",
        "data.check_labels",
        "train.save_every",
        "train.keep",
        "train.threads",
        "train.batch.micro_rows",
        "evaluate.samples",
    }
)
"""Keys, with all below them, that may change between a run and its resumption."""
SAVED = "train.save_every"
"""Counts where saves are averaged, because it says which."""

_ABSENT = object()


def digest(recipe: Recipe) -> str:
    """The sha256, in hex, of everything in a recipe that can change the result."""
    settings = dict(_settings(recipe.model_dump(mode="json")))
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What makes two resolved recipes two runs, as lines such as `train.steps: 300 -> 400`.

    Both are what `recipe.resolved.json` holds; the list is empty when the digests are equal.
    """
    before, after = dict(_settings(old)), dict(_settings(new))
    return [
        f"{key}: {_shown(before.get(key, _ABSENT))} -> {_shown(after.get(key, _ABSENT))}"
        for key in {**before, **after}
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
        and ((key in before and key in after) or not key.endswith(SAVED))  # else `average` says it
    ]


def _settings(resolved: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value that counts, by its dotted key; empty sections and lists are values too."""
    portable = map_paths(resolved, Path(), _portable)
    stages = portable.pop("stages", ())
    if not stages:
        yield from _flat(portable, "")
        return
    yield from _flat({key: portable[key] for key in portable if key not in SECTIONS}, "")
    yield "stages", [stage["name"] for stage in stages]
    for stage in stages:
        start = f"stages.{stage['name']}."
        yield from ((f"{start}{key}", value) for key, value in _flat(stage, ""))


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if key in FREE:
        return
    if key == "train" and _averages_saves(value):
        yield SAVED, value["save_every"]
    if isinstance(value, tuple) and value:
        value = {str(index): child for index, child in enumerate(value)}
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, child in value.items():
        yield from _flat(child, f"{key}.{name}".lstrip("."))


def _averages_saves(train: Any) -> bool:
    average = train.get("average", "none")
    return isinstance(average, dict) and average.get("last", "none") != "none"


def _portable(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() else path


def _shown(value: Any) -> str:
    return "(not there)" if value is _ABSENT else flow(value)
