"""`peftkit recipes`: the recipes that ship, and a check for those that do not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit.cli import output
from peftkit.cli.group import Group
from peftkit.recipe import catalog


@click.group("recipes", cls=Group, epilog="Example: peftkit recipes copy quickstart .")
def command() -> None:
    """List, show, copy and validate the recipes that ship."""


@command.command("list", epilog="Example: peftkit recipes list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_recipes(*, as_json: bool) -> None:
    """Say what each shipped recipe is for."""
    shipped = catalog.shipped()
    if as_json:
        output.show_json([{**asdict(one), "path": str(one.path)} for one in shipped])
        return
    output.table(("recipe", "purpose", "needs"), [(o.name, o.purpose, o.needs) for o in shipped])
    output.say("\n`peftkit recipes copy NAME .` gives you one to change")


@command.command("show", epilog="Example: peftkit recipes show quickstart")
@click.argument("name")
def show_recipe(name: str) -> None:
    """Print the recipe called NAME."""
    output.show(catalog.find(name).path.read_text(encoding="utf-8").rstrip())


@command.command("copy", epilog="Example: peftkit recipes copy quickstart .")
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path), default=Path())
def copy_recipe(name: str, destination: Path) -> None:
    """Copy the recipe called NAME and the data it reads.

    DESTINATION is a folder, this one unless given, or a new file when it ends in `.yaml`.
    Nothing is overwritten.
    """
    copied = catalog.copy(name, destination)
    output.show(str(copied))
    *before, own = catalog.find(name).commands_for(copied)
    for command in before:
        output.say(f"first `{command}`")
    output.say(f"run it with `{own}`")


@command.command("validate", epilog="Example: peftkit recipes validate my.yaml")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key first.")
@click.option("--json", "as_json", is_flag=True, help="Print it with every default filled in.")
def validate_recipe(recipe: Path, overrides: tuple[str, ...], *, as_json: bool) -> None:
    """Check RECIPE, and name every problem at once."""
    from peftkit.recipe.load import load_any  # the schema is not needed by the others

    loaded = load_any(recipe, overrides)
    if as_json:
        output.show_json(loaded.recipe.model_dump(mode="json"))
    output.say(f"{recipe} is a valid recipe", quiet=as_json)
