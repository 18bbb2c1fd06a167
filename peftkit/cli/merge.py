"""`peftkit merge EXPRESSION`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from peftkit.cli import output
from peftkit.cli.options import energy_option, json_option, refuse_two_cuts
from peftkit.errors import RecipeError
from peftkit.recipe.strict_yaml import InvalidYaml, parse


@click.command(
    "merge",
    epilog='Example: peftkit merge "chat + 0.7*code" --adapter chat=runs/chat '
    "--adapter code=runs/code --out merged",
)
@click.argument("expression")
@click.option(
    "--adapter", "adapters", multiple=True, metavar="NAME=DIR", help="Where a name in it is."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the merged adapter.")
@click.option("--method", default="sum", show_default=True, help="Such as `ties@paper` or `tsv`.")
@click.option(
    "--setting", "settings", multiple=True, metavar="KEY=VALUE", help="Of the method: `keep=0.2`."
)
@click.option("--rank", type=click.IntRange(min=1), help="The most that a layer may keep [all].")
@energy_option
@click.option(
    "--fail-above",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Relative error from which nothing is saved.",
)
@click.option("--base", metavar="MODEL", help="The base, for adapters that depend on it.")
@click.option("--dry-run", is_flag=True, help="Only look: nothing is written.")
@json_option
def command(  # noqa: PLR0913 - one option each
    expression: str,
    adapters: tuple[str, ...],
    out: Path | None,
    method: str,
    settings: tuple[str, ...],
    rank: int | None,
    energy: float | None,
    fail_above: float,
    base: str | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Add and subtract adapters: EXPRESSION is a sum of names times numbers."""
    if out is None and not dry_run:
        raise RecipeError("where to? `--out DIR` is missing", hint="`--dry-run` only looks")
    refuse_two_cuts(rank, energy)
    named = _named(adapters)
    read = dict(map(_setting, settings))
    from peftkit.pipeline.merge import Cut, How, merge

    facts = merge(
        expression,
        named,
        None if dry_run else out,
        how=How(method, read),
        cut=Cut(rank, energy, fail_above),
        base=base,
    )
    if as_json:
        output.show_json(facts)
        return
    _show(facts)


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


def _setting(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign:
        raise RecipeError(f"`--setting {text}`: expected a key and a value, such as `keep=0.2`")
    try:
        return key, parse(value.encode()).value
    except InvalidYaml as problem:
        raise RecipeError(f"`--setting {text}`: {problem.problems[0]}") from None


def _show(facts: dict[str, Any]) -> None:
    by = "" if facts["method"] == "sum" else f" by {facts['method']}"
    output.show(f"merged = {facts['formula']}{by}\n")
    output.table(
        ("adapter", "times", "norm", "modules", "rank", "travels along"),
        [_row(term) for term in [*facts["terms"], facts["merged"]]],
    )
    if facts["pairs"]:
        output.show("")
        output.table(
            ("pair", "cosine", "overlap", "opposite signs", "modules of both"),
            [
                (
                    " and ".join(pair["pair"]),
                    *(pair[key] for key in ("cosine", "overlap", "sign_conflict")),
                    pair["shared_modules"],
                )
                for pair in facts["pairs"]
            ],
        )
    if facts["pairs"] and facts["canceled"] is not None:
        output.show(f"\ncanceled {facts['canceled']:.3g} of all that the terms change")
    else:
        output.show("")
    worst = facts["worst_layer"]
    output.show(
        f"error    {facts['error']:.3g} of the change"
        + (f", most in {worst['name']} ({worst['error']:.3g})" if facts["error"] else ": exact")
    )
    for name in facts["trained_above"]:
        output.show(f"note     a term was trained above `{name}`, and means little without it")
    output.show(f"adapter  {facts['out'] or 'not written (--dry-run)'}")


def _row(term: dict[str, Any]) -> tuple[Any, ...]:
    ranks = term["ranks"]
    shown = None if ranks is None else "-".join(map(str, dict.fromkeys(ranks)))
    along = len(term["travels_along"]) or None
    return term["name"], term["weight"], term["norm"], term["modules"], shown, along
