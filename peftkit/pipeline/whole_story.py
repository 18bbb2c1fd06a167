"""What all stages came to: the final adapter, the figures of each, and one report of the whole.

The files at the top are those of the last stage, which the run as a whole is judged by, with what
the other stages add to them. They follow from the folders of the stages alone.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from peftkit.adapters.folders import STAGES
from peftkit.diagnose.diagnose import ORDER
from peftkit.diagnose.stages import check_stages
from peftkit.merge.final import save_final
from peftkit.recipe.following import start_of
from peftkit.recipe.sections.stages import BASE
from peftkit.report.card import build_card
from peftkit.report.page import write_report
from peftkit.report.record import EVALUATIONS, STEPS, RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.recipe.schema import Recipe

    Losses = dict[str, dict[str, float | None]]
    """By set, that is by the stage whose validation rows these are; of the base and each stage."""

SAME = ("data.json", "split.json", "samples.json", STEPS, EVALUATIONS)
"""Files that are the last stage's as they are."""


def tell_whole_story(recipe: Recipe, run: RunFolder) -> None:
    """Write at the top of a run whose stages are finished what there is to know of them all."""
    folders = {each.name: RunFolder(run.path / STAGES / each.name) for each in recipe.stages}
    last = folders[recipe.stages[-1].name]
    if run.adapter.exists():
        shutil.rmtree(run.adapter)
    final = save_final(last.adapter, run.adapter)
    for name in SAME:
        run.write(name, (last.path / name).read_text(encoding="utf-8"))
    metrics = {name: folder.read("metrics.json") for name, folder in folders.items()}
    losses = gather_losses(recipe, metrics)
    whole = last.read("metrics.json") | {
        "stages": [_describe(recipe, number, metrics) for number in range(len(recipe.stages))],
        "losses": losses,
        "final": final,
    }
    whole.pop("elsewhere", None)
    run.write("metrics.json", whole)
    run.write("findings.json", gather_findings(recipe, folders, losses))
    locks = {name: folder.read("lock.json") for name, folder in folders.items()}
    run.write("lock.json", locks[recipe.stages[-1].name] | run.read("lock.json") | {STAGES: locks})
    run.write("adapter/README.md", build_card(run.path))
    write_report(run.path)


def gather_losses(recipe: Recipe, metrics: Mapping[str, Any]) -> Losses:
    """The loss of the base and of what each stage left, on every stage's validation rows.

    None where one was never asked, because its task is another.
    """
    starts = [stage.name for stage in recipe.stages if stage.start_from in (BASE, "auto")]
    found: Losses = {}
    for stage in recipe.stages:
        name = stage.name
        before = [_loss(metrics[first], first, name, "before") for first in starts]
        found[name] = {BASE: next((loss for loss in before if loss is not None), None)}
        found[name] |= {each: _loss(metrics[each], each, name, "after") for each in metrics}
    return found


def _loss(metrics: Mapping[str, Any], own: str, wanted: str, when: str) -> float | None:
    """What a stage measured on its own validation rows, or on another's."""
    if own == wanted:
        figures = metrics["validation"] if when == "after" else metrics["baselines"]["base"]
        return float(figures["loss"])
    found = [each for each in metrics.get("elsewhere", ()) if each["stage"] == wanted]
    return float(found[0][when]["loss"]) if found else None


def _describe(recipe: Recipe, number: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One stage in a few figures."""
    stage, start = recipe.stages[number], start_of(recipe.stages, number)
    own = metrics[stage.name]
    return {
        "name": stage.name,
        "start_from": BASE if start is None else recipe.stages[start].name,
        "as": stage.how,
        "task": stage.base.task,
        "method": stage.adapter.method,
        "learning_rate": stage.train.learning_rate,
        "before": {"loss": own["baselines"]["base"]["loss"]},
        "after": {"loss": own["validation"]["loss"]},
        "speed": own["speed"],
        "verdict": own["verdict"],
    }


def gather_findings(
    recipe: Recipe, folders: Mapping[str, RunFolder], losses: Losses
) -> list[dict[str, Any]]:
    """What was found in each stage and between them, the most serious first."""
    found: list[dict[str, Any]] = [finding.facts for finding in check_stages(losses)]
    names: Sequence[str] = [stage.name for stage in recipe.stages]
    for name in reversed(names):
        for finding in folders[name].read("findings.json"):
            sentence = f"stage `{name}`: {finding['sentence']}"
            found.append(finding | {"sentence": sentence, "stage": name})
    return sorted(found, key=lambda finding: ORDER.index(finding["severity"]))
