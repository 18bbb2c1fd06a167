"""`peftkit schema`: what a recipe may say, for editors and for people."""

from __future__ import annotations

import click

from peftkit.cli import output


@click.command(
    "schema", epilog="Example: peftkit schema > recipe.schema.json, or peftkit schema train.batch"
)
@click.argument("key", default="")
@click.option("--keys", "every_key", is_flag=True, help="Explain every key, for people.")
def command(key: str, *, every_key: bool) -> None:
    """Print the JSON schema of a recipe, or explain KEY and all keys below it."""
    if key or every_key:
        _explain(key)
        return
    from peftkit.recipe.export import json_schema  # the schema is not needed for `--help`

    output.show_json(json_schema())


def _explain(under: str) -> None:
    from peftkit.recipe.reference import keys

    for key in keys(under):
        default = f"default `{key.default}`" if key.default else "required"
        facts = [default, f"only with `{key.belongs}`"] if key.belongs else [default]
        output.show(f"{key.name}: {key.expected} ({', '.join(facts)})\n    {key.meaning}")
