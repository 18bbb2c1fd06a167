"""`peftkit plan RECIPE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from peftkit.cli import output
from peftkit.cli.options import fresh_data_option, json_option, recipe_argument, set_option
from peftkit.recipe.load import load_recipe

if TYPE_CHECKING:
    from pathlib import Path


@click.command("plan", epilog="Example: peftkit plan recipes/quickstart.yaml --set train.epochs=1")
@recipe_argument
@set_option
@fresh_data_option
@json_option
def command(recipe: Path, overrides: tuple[str, ...], *, fresh_data: bool, as_json: bool) -> None:
    """Say what RECIPE will take: parameters, tokens, steps, memory, disk. Loads no weights."""
    loaded = load_recipe(recipe, overrides)
    from peftkit.pipeline.plan import make_plan
    from peftkit.pipeline.setup import set_up
    from peftkit.pipeline.stages import look_ahead, plan_of

    if loaded.recipe.stages:
        plan = plan_of(look_ahead(loaded.recipe, fresh_data=fresh_data))
    else:
        plan = make_plan(loaded.recipe, set_up(loaded.recipe, fresh_data=fresh_data)).facts
    if as_json:
        output.show_json(plan)
    else:
        show_plan(plan)


def show_plan(plan: dict[str, Any]) -> None:
    """The plan as a table, of stages a column each, with a warning where it does not fit."""
    stages = plan.get("stages", [])
    plans = stages or [plan]
    lines = zip(*(_lines(each) for each in plans), strict=True)
    output.table(
        ("what", *([each["name"] for each in stages] or ["how much"])),
        [(line[0][0], *(cell for _, cell in line)) for line in lines],
    )
    for each in plans:
        _show_groups(each)
    memory = max(max(each["memory_bytes"].values()) for each in plans)
    if stages:
        total = plan["total"]
        output.show(
            f"all stages: {total['steps']:,} steps, about {total['tokens']:,} tokens, memory for "
            f"the largest {output.size(memory)}, disk {output.size(total['disk_bytes'])}"
        )
    if memory > plan["memory_available"]:
        output.say(
            "warning: this does not fit into memory; "
            "lower `train.batch.micro_rows` or `data.max_length`"
        )


def _show_groups(plan: dict[str, Any]) -> None:
    """What learns alike, where not all does."""
    groups = plan.get("groups", [])  # of a run that an earlier version began, there are none
    if all(group["times"] == 1 and group["begins"] == 1 for group in groups):
        return
    stage = f"what learns in {plan['name']}" if "name" in plan else "what learns"
    output.table(
        (stage, "parameters", "learning rate", "weight decay", "from step"),
        [
            (
                group["name"],
                output.figure(group["parameters"]),
                output.figure(group["learning_rate"]),
                output.figure(group["weight_decay"]),
                str(group["begins"]),
            )
            for group in groups
        ],
    )


def _lines(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Each figure of a plan, in words."""
    memory = plan["memory_bytes"]
    return [
        ("parameters of the base", output.figure(plan["parameters"])),
        ("trainable", f"{plan['trainable']:,} ({100 * plan['share']:.2f} %)"),
        ("training rows", output.figure(plan["rows"])),
        ("tokens an epoch", output.figure(plan["tokens_per_epoch"])),
        ("steps", f"{plan['steps']:,} of {plan['rows_per_step']} rows"),
        ("epochs", output.figure(plan["epochs"])),
        ("tokens a step, about", output.figure(plan["tokens_per_step"])),
        ("rows a forward pass", output.figure(plan["micro_rows"])),
        ("positions that hold a token, about", f"{100 * plan['fill']:.0f} %"),
        ("blocks that run again to save memory", output.figure(plan["recomputed_blocks"])),
        ("memory for the base's weights", output.size(plan["base_bytes"])),
        ("memory for training, about", output.size(memory["training"])),
        ("memory for evaluation, about", output.size(memory["evaluation"])),
        ("memory of this machine", output.size(plan["memory_available"])),
        ("disk", output.size(plan["disk_bytes"])),
    ]
