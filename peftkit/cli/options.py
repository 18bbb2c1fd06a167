"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit.errors import RecipeError

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
energy_option = click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of squared singular values that every layer keeps.",
)
without_option = click.option(
    "--without",
    "left_out",
    multiple=True,
    metavar="PATTERN",
    help="Leave out parts of this name, such as `*norm*`; may be repeated.",
)


def refuse_two_cuts(rank: int | None, energy: float | None) -> None:
    """Say that a rank and an energy cannot both be meant.

    Raises:
        RecipeError: both are given.
    """
    if rank is not None and energy is not None:
        raise RecipeError("either `--rank` or `--energy` says where to cut; keep one")
