"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe."
)
fresh_data_option = click.option(
    "--fresh-data", is_flag=True, help="Make the tokens anew that earlier runs kept."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
adapter_option = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Add an adapter; may be repeated.",
)
