"""What the rows are like, for `data.json`, and what of it is said before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.data.filters import count_bad, limits_of
from peftkit.data.preprocessing import ROWS, describe_fit
from peftkit.data.quality import LOOKED_AT, count_classes, describe_words
from peftkit.diagnose.data_checks import check_data, check_label_noise
from peftkit.evaluate.label_noise import find_label_noise
from peftkit.recipe.sections.base import LABELLED
from peftkit.report import tolerant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.pipeline.plan import Plan
    from peftkit.pipeline.setup import Setup
    from peftkit.pipeline.watch import Watch
    from peftkit.recipe.schema import Recipe
    from peftkit.report.record import RunFolder

AUTO_ROWS, MOST_ROWS = 2_000, 20_000
"""Labels that `data.check_labels` looks at, at most, if it is `auto` and if it is `on`."""
FEWEST_ROWS = 400
SEEN = 5
"""Rows that training sees for one whose label `auto` looks at: a fifteenth of the work, as a
backward pass costs two forward ones."""


def inspect_rows(recipe: Recipe, setup: Setup) -> dict[str, Any]:
    """Everything that `data.json` says of the rows beyond their number.

    Replay may have many more rows than there are to learn from, and copies say nothing that their
    rows do not, so neither tells what the rows are like.
    """
    data, task = setup.data, recipe.base.task
    sets = {"train": data.train, "validation": data.validation, "test": data.test}
    examples = {name: found.examples for name, found in sets.items() if found is not None}
    on, own = limits_of(recipe.data.filters), data.own
    remembered = [each.text for found in data.remember for each in found.examples[:ROWS]]
    return {
        "balance": count_classes(examples, setup.base.names, task) if task in LABELLED else None,
        "languages": {
            name: describe_words(found) for name, found in {**examples, "train": own}.items()
        },
        "filters": {
            "left_out": data.filtered or None,
            "counted": count_bad(own, task, LOOKED_AT, on),
        },
        "preprocessing": describe_fit(setup.tokenizer, own, remembered),
    }


def told_of_labels(run: RunFolder) -> dict[str, Any]:
    """What an earlier part of the run found out about the labels."""
    held = tolerant.table(tolerant.read_json(run.path / "data.json").value)
    return {"label_noise": held["label_noise"]} if "label_noise" in held else {}


def inspect_labels(model: Any, setup: Setup, recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """What `data.json` says of labels that are probably wrong; why not, where none was looked at.

    To be called where the model answers as the base.
    """
    asked, task = recipe.data.check_labels, recipe.base.task
    if task != "classification":
        return {"rows": 0, "why": f"a {task} row has no single label to check"}
    if asked == "off":
        return {"rows": 0, "why": "`data.check_labels: off`"}
    if asked == "auto" and recipe.base.weights == "random":
        return {"rows": 0, "why": "a base of random weights knows nothing"}
    worth = max(FEWEST_ROWS, plan.steps * plan.rows_per_step // SEEN)
    limit = MOST_ROWS if asked == "on" else min(AUTO_ROWS, worth)
    return find_label_noise(model, setup.data.own, setup.task, setup.pad_id, limit)


def note_labels(
    run: RunFolder, model: Any, setup: Setup, recipe: Recipe, plan: Plan, watch: Watch
) -> None:
    """Add what is said of the labels to `data.json`, unless that was found out earlier."""
    data = run.read("data.json")
    if data.get("label_noise", {}).get("rows"):  # `data.check_labels` may be turned on meanwhile
        return
    data["label_noise"] = inspect_labels(model, setup, recipe, plan)
    run.write("data.json", data)
    finding = check_label_noise(data)
    if finding is not None and finding.severity != "ok":
        watch.say(f"{finding.severity}: {finding.sentence}")


def say_what_is_wrong(data: Mapping[str, Any], task: str, watch: Watch) -> None:
    """Tell what was found about the rows, before any time is spent on them."""
    for finding in check_data(data, task):
        if finding.severity != "ok":
            watch.say(f"{finding.severity}: {finding.sentence}; {finding.advice}")
