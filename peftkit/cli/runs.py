"""`peftkit runs [DIR]`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from peftkit.cli import output
from peftkit.cli.options import json_option
from peftkit.errors import RecipeError
from peftkit.report.record import STEPS, RunFolder


@click.command("runs", epilog="Example: peftkit runs runs --json")
@click.argument("folder", metavar="[DIR]", default="runs", type=click.Path(path_type=Path))
@json_option
def command(folder: Path, *, as_json: bool) -> None:
    """List what ran in DIR, when, and how it went; the newest first."""
    if not folder.is_dir():
        raise RecipeError(
            f"no folder `{folder}`", hint="`peftkit finetune recipes/quickstart.yaml` makes one"
        )
    resolved = (path.with_name("recipe.resolved.json") for path in folder.rglob("recipe.yaml"))
    found = sorted(filter(Path.exists, resolved), key=_changed, reverse=True)
    described = [_describe(path.parent) for path in found]
    if as_json:
        output.show_json(described)
        return
    if not described:
        output.say(f"no runs in `{folder}`")
        return
    output.table(
        ("run", "when", "method", "base", "state", "validation loss", "helped"),
        [tuple(run.values()) for run in described],
    )


def _describe(path: Path) -> dict[str, Any]:
    run = RunFolder(path)
    recipe, metrics = run.read("recipe.resolved.json"), run.read("metrics.json")
    when = datetime.fromtimestamp(_changed(path / "recipe.resolved.json"), UTC)
    return {
        "run": str(path),
        "when": when.strftime("%Y-%m-%d %H:%M"),
        "method": recipe["adapter"]["method"],
        "base": Path(recipe["base"]["model"]).name,
        "state": "finished" if run.finished else _how_far(run),
        "validation_loss": metrics["validation"]["loss"] if metrics else None,
        "helped": metrics["verdict"]["helped"] if metrics else None,
    }


def _how_far(run: RunFolder) -> str:
    plan, steps = run.read("plan.json"), run.lines(STEPS)
    if not plan:
        return "not begun"
    if stages := plan.get("stages"):
        done = [RunFolder(run.path / "stages" / each["name"]).finished for each in stages]
        return f"{sum(done)} of {len(stages)} stages"
    return f"step {steps[-1]['step'] if steps else 0} of {plan['steps']}"


def _changed(path: Path) -> float:
    return path.stat().st_mtime
