"""`peftkit preview RECIPE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from peftkit.cli import output
from peftkit.cli.options import fresh_data_option, json_option, recipe_argument, set_option
from peftkit.recipe.load import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

YES = "yes"
SIGNS = {" ": "·", "\n": "↵", "\t": "→", "\\": "\\"}
"""What stands for a character that would not be seen, or would be seen twice."""
FIGURES = (
    *("rows", "tokens", "trained_tokens", "stops_trained", "longest"),
    *("cut", "cut_tokens", "cut_answers", "control_as_text", "dropped"),
)
"""Of a set in `data.json`, those that are shown."""


@click.command("preview", epilog="Example: peftkit preview recipes/quickstart.yaml --rows 1")
@recipe_argument
@set_option
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="How many.")
@fresh_data_option
@json_option
def command(recipe: Path, overrides: tuple[str, ...], rows: int, **flags: bool) -> None:
    """Show rows of RECIPE as the model will see them: tokens, and which of them carry loss."""
    loaded = load_recipe(recipe, overrides)
    from peftkit.pipeline.preview import preview

    whole, fresh_data = loaded.recipe, flags["fresh_data"]
    if not whole.stages:
        shown = preview(whole, rows, fresh_data=fresh_data)
        output.show_json(shown) if flags["as_json"] else _show(shown)
        return
    each = {
        stage.name: preview(whole.stage(number), rows, fresh_data=fresh_data)
        for number, stage in enumerate(whole.stages)
    }
    if flags["as_json"]:
        output.show_json({"stages": each})
        return
    for name, shown in each.items():
        output.show(f"stage `{name}`")
        _show(shown)
        output.show("")


def _show(shown: dict[str, Any]) -> None:
    for row in shown["rows"]:
        _show_row(row)
    _show_totals(shown["totals"])


def _show_row(row: dict[str, Any]) -> None:
    kept = [token for token in row["tokens"] if not token["cut"]]
    facts = [
        f"{row['where']}: {len(kept)} tokens",
        f"{row['trained_tokens']} carry loss",
        _goal(row),
        f"{row['cut']} cut",
    ]
    if row["cut_answers"]:
        facts.append(f"answers cut: {row['cut_answers']}")
    if row["control_as_text"]:
        facts.append(f"control tokens read as text: {row['control_as_text']}")
    output.show(", ".join(facts))
    if row["changed"]:
        output.show(f"a changed copy: {row['changed']}")
    output.table(
        ("token", "id", "role", "carries loss", "cut"),
        [
            (
                make_visible(token["text"]),
                token["id"],
                token["role"],
                token["label"] or YES * token["trained"],
                "cut" * token["cut"],
            )
            for token in row["tokens"]
        ],
        styles=[
            "dim" if token["cut"] else "green" if token["trained"] else ""
            for token in row["tokens"]
        ],
    )
    output.show("")


def make_visible(text: str) -> str:
    """The text of a token, with a sign for each space, line end and other character without ink."""
    return "".join(SIGNS.get(sign, repr(sign)[1:-1] if sign != "'" else sign) for sign in text)


def _goal(row: dict[str, Any]) -> str:
    """What the model must say: where it stops, or which labels it must find."""
    if any(token["label"] for token in row["tokens"]):
        return "each a tag"
    if row["labels"] is not None:
        return f"labels: {', '.join(row['labels']) or 'none'}"
    stop = {True: "yes", False: "no", None: "the tokenizer has none"}[row["stop_trained"]]
    return f"stop token trained: {stop}"


def _show_totals(totals: dict[str, Any]) -> None:
    """One line a figure, one column a set."""
    found = {name: facts for name, facts in totals.items() if facts}
    lines: list[tuple[str, *tuple[Any, ...]]] = [
        (name.replace("_", " "), *(facts[name] for facts in found.values())) for name in FIGURES
    ]
    lines.append(("skipped", *(len(facts["skipped"]) for facts in found.values())))
    roles = sorted({role for facts in found.values() for role in facts["trained_by_role"]})
    for role in roles:
        own = (facts["trained_by_role"].get(role, 0) for facts in found.values())
        lines.append((f"trained tokens: {role}", *own))
    output.table(("total", *found), lines)
