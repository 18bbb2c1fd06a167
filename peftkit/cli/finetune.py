"""`peftkit finetune RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from peftkit.cli import output
from peftkit.cli.options import fresh_data_option
from peftkit.cli.watching import Terminal
from peftkit.errors import RunError, Stopped
from peftkit.pipeline.signals import listen
from peftkit.recipe.load import load_recipe
from peftkit.report.holding import hold
from peftkit.train.processes import is_first, join

if TYPE_CHECKING:
    from peftkit.pipeline.conclude import Run


@click.command(
    "finetune", epilog="Example: peftkit finetune recipes/quickstart.yaml --out runs/try"
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [runs/<name>].")
@click.option("--dry-run", is_flag=True, help="Do everything up to the first step, then stop.")
@click.option("--fresh", is_flag=True, help="Ignore an earlier run in the folder.")
@fresh_data_option
@click.option(
    "--allow-change",
    "allow",
    multiple=True,
    metavar="KEY",
    help="Go on although KEY is not what the run began with: a recipe key such as "
    "`train.steps`, or `data` or `base`; lock.json records it. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
@click.option("--quiet", is_flag=True, help="Say nothing but the result.")
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    allow: tuple[str, ...],
    **flags: bool,
) -> None:
    """Train an adapter as RECIPE says, and say whether it worked.

    The same command goes on where an interrupted run stopped.
    """
    if not is_first():
        _follow(dry_run=flags["dry_run"])
        return
    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / loaded.recipe.name
    watch = Terminal(quiet=flags["quiet"])
    fresh = {name: flags[name] for name in ("fresh", "fresh_data")}
    with listen(), hold(folder) as run:
        whole = loaded.recipe
        methods = [stage.adapter.method for stage in whole.stages] or [whole.adapter.method]
        watch.say(f"{whole.name}: {', then '.join(methods)} on {whole.base.model}, in {folder}")
        from peftkit.pipeline.finetune import dry_run, finetune

        if flags["dry_run"]:
            join()
            dry_run(loaded, run, **fresh, allow=allow, watch=watch)
            _show_plan(run.read("plan.json"), as_json=flags["as_json"])
            return
        done = finetune(loaded, run, **fresh, allow=allow, watch=watch)
    if flags["as_json"]:
        output.show_json(done.metrics)
    else:
        _show_result(done)


def _follow(*, dry_run: bool) -> None:
    """Help the first process, which also says what all of them run into alike."""
    if dry_run:
        join()
        return
    from peftkit.pipeline.follow import follow

    try:
        follow()
    except (RunError, Stopped) as error:
        raise Exit(error.exit_code) from None


def _show_plan(plan: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.show_json(plan)
        return
    from peftkit.cli.plan import show_plan

    show_plan(plan)


def _show_result(run: Run) -> None:
    figures = run.metrics["difference"]
    output.table(
        ("", "base", "adapted", "change", "95 % interval"),
        [
            (
                f"{rows} {name.replace('_', ' ')}",
                change["base"],
                change["adapted"],
                change["change"],
                f"{output.figure(change['low'])} to {output.figure(change['high'])}",
            )
            for rows, metrics in figures.items()
            for name, change in metrics.items()
        ],
    )
    _show_sample(run)
    for finding in run.findings:
        if finding["severity"] in ("warning", "problem"):
            output.show(f"{finding['severity']}: {finding['sentence']}; {finding['advice']}")
    output.show(f"\n{run.metrics['verdict']['sentence']}")
    output.show(f"adapter  {run.adapter}\nreport   {run.report}")


def _show_sample(run: Run) -> None:
    if not run.samples:
        return
    sample = run.samples[0]
    output.show("")
    for name in ("prompt", "before", "after"):
        text = " ".join(sample[name].split())
        output.show(f"{name:<8} {text[:160]}{'…' if len(text) > 160 else ''}")
