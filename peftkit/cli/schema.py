"""`peftkit schema`: what a recipe may say, for editors and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from peftkit.cli import output

if TYPE_CHECKING:
    from peftkit.recipe.kinds import Kind


@click.command(
    "schema", epilog="Example: peftkit schema > recipe.schema.json, or peftkit schema train.batch"
)
@click.argument("key", default="")
@click.option("--keys", "every_key", is_flag=True, help="Explain every key, for people.")
@click.option("--merge", "of_merges", is_flag=True, help="Of what `peftkit merge` takes.")
def command(key: str, *, every_key: bool, of_merges: bool) -> None:
    """Print the JSON schema of a recipe, or explain KEY and all keys below it."""
    from peftkit.recipe.kinds import MERGE, RECIPE  # schemas are not needed for `--help`

    kind = MERGE if of_merges else RECIPE
    if key or every_key:
        _explain(key, kind)
        return
    from peftkit.recipe.export import json_schema

    output.show_json(json_schema(kind))


def _explain(under: str, kind: Kind) -> None:
    from peftkit.recipe.reference import keys

    for key in keys(under, kind):
        default = f"default `{key.default}`" if key.default else "required"
        facts = [default, f"only with `{key.belongs}`"] if key.belongs else [default]
        output.show(f"{key.name}: {key.expected} ({', '.join(facts)})\n    {key.meaning}")
