"""One recipe at several learning rates and methods, to choose by what is learned and forgotten.

Methods are never compared at one learning rate: each has a best one of its own. Every point is an
ordinary run in a folder of its own, so that what was interrupted goes on point by point.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.disk.durable import write_whole
from peftkit.errors import RecipeError
from peftkit.pipeline.api import finetune
from peftkit.recipe.load import load_recipe
from peftkit.report.comparison import named
from peftkit.report.frontier import points
from peftkit.report.page import build_comparison
from peftkit.report.reading import read_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FEWEST_RATES = 4
"""Learning rates below which the best of a method may lie outside, or between two of them."""


def frontier(
    recipe: str | Path,
    *,
    rates: Sequence[float],
    methods: Sequence[str | Mapping[str, Any]] = ("lora",),
    set: Mapping[str, Any] | None = None,  # noqa: A002 - named as the command line names it
    out: str | Path | None = None,
) -> list[dict[str, Any]]:
    """A point for each method at each learning rate; `frontier.html` in the folder draws them.

    Each has its `label`, its `gain` (nats by which the loss on what was taught fell) with `low` and
    `high`, its `rise` (nats by which that on `evaluate.remember` rose), and whether it is
    `unbeaten`. Called again, it goes on with what is not finished.

    Args:
        recipe: the rest of each run; something must be under its `evaluate.remember`.
        rates: at least four.
        methods: names, or sections as under `adapter`.
        set: keys that are other than the recipe has them, in every run.
        out: the folder; `runs/<name>-frontier` unless given.

    Raises:
        RecipeError: there are too few rates, or there is nothing to remember.
    """
    if len({*rates}) < FEWEST_RATES:
        raise RecipeError(
            f"{len({*rates})} learning rates say little of a method; at least {FEWEST_RATES} do",
            hint="`rates=[3e-4, 1e-3, 3e-3, 1e-2]`",
        )
    loaded = load_recipe(Path(recipe)).recipe
    if not loaded.evaluate.remember:
        raise RecipeError(
            "evaluate.remember: nothing to forget is named, so forgetting cannot be measured",
            hint="`evaluate: {remember: {source: general.txt, format: text}}`",
        )
    folder = Path(out) if out else Path("runs") / f"{loaded.name}-frontier"
    sections = [{"method": each} if isinstance(each, str) else dict(each) for each in methods]
    runs = []
    for section in sections:
        for rate in sorted({*rates}):
            name = f"{section['method']}-{rate:g}"
            own = {"name": name, "adapter": section, "train.learning_rate": rate}
            finetune(recipe, set={**(set or {}), **own}, out=folder / name)
            runs.append(folder / name)
    found = [_facts(asdict(point)) for point in points(named([read_run(run) for run in runs]))]
    write_whole(folder / "frontier.json", json.dumps(found, indent=2) + "\n")
    write_whole(folder / "frontier.html", build_comparison(runs))
    return found


def _facts(point: dict[str, Any]) -> dict[str, Any]:
    low, high = point.pop("reach") or (None, None)
    return point | {"low": low, "high": high}
