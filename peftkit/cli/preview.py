"""`peftkit preview RECIPE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from peftkit.cli import output
from peftkit.cli.options import json_option, recipe_argument, set_option
from peftkit.recipe.load import load_recipe

if TYPE_CHECKING:
    from pathlib import Path


@click.command("preview", epilog="Example: peftkit preview recipes/quickstart.yaml --rows 1")
@recipe_argument
@set_option
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="How many.")
@json_option
def command(recipe: Path, overrides: tuple[str, ...], rows: int, *, as_json: bool) -> None:
    """Show rows of RECIPE as the model will see them: tokens, and which of them carry loss."""
    loaded = load_recipe(recipe, overrides)
    from peftkit.pipeline.preview import preview

    shown = preview(loaded.recipe, rows)
    if as_json:
        output.show_json(shown)
        return
    for row in shown["rows"]:
        _show_row(row)
    _show_totals(shown["totals"])


def _show_row(row: dict[str, Any]) -> None:
    yes = "yes"
    output.show(
        f"{row['where']}: {len(row['tokens'])} tokens, {row['trained_tokens']} carry loss, "
        f"{_goal(row)}, {row['cut']} cut"
    )
    if row["changed"]:
        output.show(f"a changed copy: {row['changed']}")
    output.table(
        ("token", "id", "carries loss"),
        [
            (repr(token["text"])[1:-1], token["id"], token["label"] or yes * token["trained"])
            for token in row["tokens"]
        ],
    )
    output.show("")


def _goal(row: dict[str, Any]) -> str:
    """What the model must say: where it stops, or which labels it must find."""
    if any(token["label"] for token in row["tokens"]):
        return "each a tag"
    if row["labels"] is not None:
        return f"labels: {', '.join(row['labels']) or 'none'}"
    stop = {True: "yes", False: "no", None: "the tokenizer has none"}[row["stop_trained"]]
    return f"stop token trained: {stop}"


def _show_totals(totals: dict[str, Any]) -> None:
    columns = ("rows", "tokens", "trained_tokens", "longest", "cut", "dropped")
    output.table(
        ("set", *(name.replace("_", " ") for name in columns), "skipped"),
        [
            (name, *(facts[column] for column in columns), len(facts["skipped"]))
            for name, facts in totals.items()
            if facts
        ],
    )
