"""`peftkit evaluate TARGET`."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit.cli import output
from peftkit.cli.options import adapter_option, json_option
from peftkit.recipe.load import load_recipe


@click.command("evaluate", epilog="Example: peftkit evaluate runs/quickstart --data more.jsonl")
@click.argument("target")
@click.option("--recipe", type=click.Path(path_type=Path), help="Whose rows to use.")
@click.option("--data", multiple=True, metavar="FILE", help="Rows to use; may be repeated.")
@click.option(
    "--metrics",
    "metrics",
    multiple=True,
    type=click.Choice(["loss", "exact_match"]),
    help="What to measure; may be repeated.",
)
@adapter_option
@json_option
def command(
    target: str,
    recipe: Path | None,
    data: tuple[str, ...],
    metrics: tuple[str, ...],
    adapters: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Measure TARGET: a run folder, an adapter folder, or a base."""
    loaded = load_recipe(recipe) if recipe else None
    from peftkit.pipeline.evaluate import evaluate

    found = evaluate(
        target,
        recipe=loaded.recipe if loaded else None,
        data=data,
        adapters=adapters,
        metrics=metrics,
    )
    if as_json:
        output.show_json(found)
        return
    names = sorted({name for figures in found.values() for name in figures}, key=_place)
    output.table(
        ("set", *(name.replace("_", " ") for name in names)),
        [(label, *(figures.get(name) for name in names)) for label, figures in found.items()],
    )


def _place(name: str) -> int:
    order = ("rows", "tokens", "bytes", "loss", "loss_per_byte", "perplexity", "exact_match")
    return order.index(name) if name in order else len(order)
