"""The stages of a run as tables of words: a column a stage, and what each left of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.report import wording
from peftkit.report.tables import Table
from peftkit.report.wording import NOTHING

if TYPE_CHECKING:
    from peftkit.report.facts import Run, Stage

BASE = "base"
COMPARED = (
    "Each stage is compared with what the stage that it starts from had left; the figures, curves "
    "and samples of this page are of the last one."
)
ANOTHER_TASK = f"{NOTHING} stands where a stage does another task, and was never asked."


def stages(run: Run) -> list[Table]:
    """What each stage did, and the loss on every stage's validation rows after each of them."""
    if not run.stages:
        return []
    rows = tuple(
        (name, *(show(stage) for stage in run.stages))
        for name, show in (
            ("Starts from", _start),
            ("Task", lambda stage: stage.task),
            ("Method", lambda stage: stage.method),
            ("Peak learning rate", lambda stage: wording.figure(stage.learning_rate)),
            ("Tokens", lambda stage: wording.count(stage.tokens)),
            ("Training time", lambda stage: wording.duration(stage.seconds)),
            ("Own loss before", lambda stage: wording.loss(stage.before)),
            ("Own loss after", lambda stage: wording.loss(stage.after)),
        )
    )
    names = tuple(stage.name for stage in run.stages)
    return [Table("What each stage did", ("", *names), rows, COMPARED), _losses(run)]


def stands_on(run: Run) -> str:
    """What the final adapter needs beside the base, in words; empty where it needs nothing."""
    if not run.final_needs:
        return ""
    named = ", ".join(f"`stages/{name}`" for name in run.final_needs)
    return f"The final adapter was trained on the base with {named}, and means little without."


def _start(stage: Stage) -> str:
    return stage.start if stage.start == BASE else f"{stage.start}, {stage.how}"


def _losses(run: Run) -> Table:
    columns = list(dict.fromkeys(each for found in run.stage_losses.values() for each in found))
    rows = tuple(
        (name, *(wording.loss(found.get(column)) for column in columns))
        for name, found in run.stage_losses.items()
    )
    heads = (wording.sentence_case(BASE) if each == BASE else f"After {each}" for each in columns)
    missing = any(loss is None for found in run.stage_losses.values() for loss in found.values())
    title = "Loss on the validation rows of each stage"
    note = ANOTHER_TASK if missing else ""
    return Table(title, ("Validation rows of", *heads), rows, note)
