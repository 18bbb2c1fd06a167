"""`peftkit merge`: of a merge recipe, or of a formula that is typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftkit.cli import output
from peftkit.cli.merge_output import show_explained, show_merge
from peftkit.cli.options import (
    energy_option,
    json_option,
    refuse_two_cuts,
    set_option,
    without_option,
)
from peftkit.cli.watching import Terminal
from peftkit.errors import RecipeError, RunError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.recipe.merge_schema import MergeRecipe

ENDINGS = (".yaml", ".yml")
RESULTS = Path("merged")
"""Where results of merge recipes go, each in a folder of its name."""


@click.command(
    "merge",
    epilog='Example: peftkit merge merge.yaml, or peftkit merge "chat + 0.7*code" '
    "--adapter chat=runs/chat --adapter code=runs/code --out merged",
)
@click.argument("source", metavar="RECIPE|EXPRESSION", default="")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=DIR", help="Where a name in it is."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the result [merged/NAME].")
@set_option
@click.option("--method", metavar="NAME", help="Such as `ties@paper` or `tsv` [sum].")
@click.option(
    "--setting", "settings", multiple=True, metavar="KEY=VALUE", help="Of the method: `keep=0.2`."
)
@click.option("--rank", type=click.IntRange(min=1), help="The most that a layer may keep [all].")
@energy_option
@click.option(
    "--fail-above",
    type=click.FloatRange(min=0),
    help="Relative error from which nothing is saved [1].",
)
@without_option
@click.option("--base", metavar="MODEL", help="The base, for adapters that depend on it.")
@click.option("--dry-run", is_flag=True, help="Only look: nothing is written.")
@click.option("--explain", is_flag=True, help="Only say what is added, with the numbers, by layer.")
@click.option(
    "--reproduce",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Make the merge in DIR again, and compare.",
)
@json_option
def command(
    source: str,
    adapters: tuple[str, ...],
    out: Path | None,
    reproduce: Path | None,
    *,
    dry_run: bool,
    explain: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Add and subtract adapters and fine-tuned models, exactly, and say what it cost.

    RECIPE is a YAML file. EXPRESSION is a sum of names times numbers; `--adapter` says where each
    name is, and options say what a recipe would.
    """
    named = _named(adapters)
    if reproduce is not None:
        if source:
            raise RecipeError("`--reproduce` reads from the folder what to merge; keep one of them")
        _reproduce(reproduce, named, out, base=options["base"], as_json=as_json)
        return
    recipe = _recipe(source, named, options)
    typed = not source.endswith(ENDINGS)
    if out is None and typed and not (dry_run or explain):
        raise RecipeError("where to? `--out DIR` is missing", hint="`--dry-run` only looks")
    from peftkit.pipeline.merge import merge

    only_look = dry_run or explain
    found = merge(recipe, out or RESULTS / recipe.name, dry_run=only_look, watch=Terminal())
    if explain:
        show_explained(found.facts, as_json=as_json)
        return
    if as_json:
        output.show_json(found.facts)
    else:
        show_merge(found.facts)
    if found.refusal is not None:
        raise found.refusal


def _recipe(source: str, named: dict[str, str], options: Mapping[str, Any]) -> MergeRecipe:
    """What was asked for: a file, or a formula, with options laid over it."""
    refuse_two_cuts(options["rank"], options["energy"])
    changes = [*options["overrides"], *_changes(options)]
    from peftkit.recipe.load import load_merge, make_merge  # schemas are not needed for `--help`

    if source.endswith(ENDINGS):
        places = [f"adapters.{name}={place}" for name, place in named.items()]
        return load_merge(Path(source), [*places, *changes]).recipe
    if not source:
        raise RecipeError(
            "what shall be merged? neither a recipe nor a formula is given",
            hint='`peftkit merge "chat + 0.7*code" --adapter chat=PATH --adapter code=PATH`',
        )
    values = {"name": "merged", "adapters": named, "expression": source}
    labels: dict[Any, str] = {("adapters", name): f"--adapter {name}" for name in named}
    return make_merge(values, labels, changes)


def _changes(options: Mapping[str, Any]) -> list[str]:
    """Options as `--set` would say them."""
    settings = dict(map(_setting, options["settings"]))
    found = []
    if options["method"] is not None:
        inside = "".join(f", {key}: {value}" for key, value in settings.items())
        found.append(f"method={{name: {options['method']}{inside}}}")
    else:
        found += [f"method.{key}={value}" for key, value in settings.items()]
    for name, key in PLACES.items():
        if options[name] is not None:
            found.append(f"{key}={options[name]}")
    if options["left_out"]:
        quoted = ", ".join("'" + each.replace("'", "''") + "'" for each in options["left_out"])
        found.append(f"without=[{quoted}]")
    return found


PLACES = {
    "rank": "output.rank",
    "energy": "output.energy",
    "fail_above": "output.fail_above",
    "base": "base",
}
"""Options, and the keys that they are short for."""


def _named(adapters: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in adapters:
        name, sign, place = text.partition("=")
        if not sign or not name.isidentifier():
            raise RecipeError(
                f"`--adapter {text}`: expected a name of letters, digits and `_`, and a place",
                hint="write it like `--adapter chat=runs/chat`",
            )
        if name in found:
            raise RecipeError(f"`--adapter {name}=...` stands twice")
        found[name] = place
    return found


def _setting(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise RecipeError(f"`--setting {text}`: expected a key and a value, such as `keep=0.2`")
    return key, value


def _reproduce(
    folder: Path, named: dict[str, str], out: Path | None, *, base: str | None, as_json: bool
) -> None:
    from peftkit.pipeline.reproduce import reproduce

    found = reproduce(folder, named, out, base=base)
    if as_json:
        facts = {"identical": found.identical, "files": found.files}
        output.show_json(facts | {"differences": list(found.differences)})
    else:
        rows = [(name, "identical" if same else "differs") for name, same in found.files.items()]
        output.table(("file", "made again"), rows)
    if not found.identical:
        raise RunError(f"`{folder}` is not what its parents give", problems=found.differences)
