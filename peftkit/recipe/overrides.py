"""Lay `--set a.b=c` options over a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import RecipeError
from peftkit.recipe.layers import Layer, Origin, merge
from peftkit.recipe.paths import anchor
from peftkit.recipe.spelling import dotted, shown
from peftkit.recipe.strict_yaml import MAX_DEPTH, InvalidYaml, Location, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

_AFTER_EVERY_FILE = 1_000_000


def override(recipe: Layer, options: Sequence[str]) -> Layer:
    """`recipe` with each `key=value` laid over it in turn; relative paths start where we are.

    Raises:
        RecipeError: an option has no `=`, its value is not YAML, or its key leads nowhere.
    """
    for number, option in enumerate(options):
        recipe = _laid_over(recipe, option, number)
    return recipe


def _laid_over(recipe: Layer, option: str, number: int) -> Layer:
    key, equals, text = option.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise RecipeError(
            f"cannot read {shown(f'--set {option}')}",
            hint="write it as `--set section.key=value`, for example `--set train.steps=50`",
        )
    if parts[0] == "extends":
        raise RecipeError("`--set extends` is not possible: only a file can extend another")
    label = f"--set {dotted(parts)}"
    try:
        document = parse(text.encode("utf-8", "surrogatepass"))
    except InvalidYaml as error:
        problems = [f"{label}: {problem.partition(': ')[2]}" for problem in error.problems]
        raise RecipeError(f"cannot read {shown(f'--set {option}')}", problems=problems) from None
    parts = _numbered(recipe.values, parts)
    value = anchor(document.value, Path(), tuple(part for part in parts if not part.isdigit()))
    values, keys = _placed(recipe.values, tuple(parts), value, label)
    origins = {
        keys + inner: Origin(_AFTER_EVERY_FILE + number, 1, label, document.spelled.get(inner, ""))
        for inner in document.lines or [()]
    }
    return Layer(values, {**recipe.origins, **origins})


def _numbered(values: Any, parts: list[str]) -> list[str]:
    """The same place, with a stage that is named in it by its number."""
    stages = values.get("stages") if parts[0] == "stages" else None
    named = [each.get("name") for each in stages or () if isinstance(each, dict)]
    if len(parts) < 2 or parts[1] not in named:
        return parts
    return ["stages", str(named.index(parts[1])), *parts[2:]]


def _placed(
    inside: Any, parts: tuple[str, ...], value: Any, label: str, here: Location = ()
) -> tuple[Any, Location]:
    """`inside` with `value` at `parts`, and the location that turned out to be."""
    called = here[-1] if here else ""
    if not parts:
        return merge(inside, value, called), here
    part, rest = parts[0], parts[1:]
    if isinstance(inside, tuple):
        index = _entry(part, inside, label, here)
        child, keys = _placed(inside[index], rest, value, label, (*here, index))
        return (*inside[:index], child, *inside[index + 1 :]), keys
    if inside is not None and not isinstance(inside, dict):
        where = dotted(here)
        raise RecipeError(f"`{label}` leads nowhere: `{where}` is a single value, not a section")
    child, keys = _placed((inside or {}).get(part), rest, value, label, (*here, part))
    return merge(inside or {}, {part: child}, called), keys


def _entry(part: str, entries: tuple[Any, ...], label: str, here: Location) -> int:
    where = dotted(here)
    if not (part.isascii() and part.isdigit() and len(part) < 10):
        raise RecipeError(
            f"`{label}` leads nowhere: `{where}` is a list",
            hint=f"name an entry by its number, for example `--set {where}.0=...`",
        )
    if int(part) >= len(entries):
        raise RecipeError(
            f"`{label}` leads nowhere: `{where}` has {len(entries)} "
            f"{'entry' if len(entries) == 1 else 'entries'}, numbered from 0"
        )
    return int(part)
