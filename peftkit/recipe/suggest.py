"""Turn pydantic's errors into sentences a recipe author can act on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peftkit.recipe import shape
from peftkit.recipe.spelling import dotted, nearest, shown
from peftkit.recipe.stages import in_a_run
from peftkit.recipe.strict_yaml import Location, scalar

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from peftkit.recipe.kinds import Kind
    from peftkit.recipe.layers import Layer, Origin


@dataclass(frozen=True, order=True)
class _Problem:
    origin: Origin
    where: str
    sentence: str
    path: Location = field(compare=False)
    """Where in the schema, pydantic's labels removed."""
    meant: str = field(default="", compare=False)
    """Of an unknown key, the dotted key it was probably meant to be."""

    def __str__(self) -> str:
        already_named = self.origin.label == f"--set {self.where}"
        where = self.origin.label if already_named else f"{self.origin.label}: {self.where}"
        return f"{where}: {self.sentence}"


@dataclass(frozen=True)
class _Spot:
    """One place, as the author wrote it and as the schema sees it."""

    written: Location
    """As written: no labels, and no entry number where a single value stood for a list."""
    path: Location
    """In the schema: no labels, but every entry number."""
    expected: Any
    """The annotation of what is written there."""
    within: Any
    """The annotation at the end of the location, narrowed to the member that was chosen."""


def explain(error: ValidationError, layer: Layer, kind: Kind) -> tuple[list[str], str]:
    """Every problem once, in reading order, as `line 6: adapter.rnak: …`; and what to type next."""
    problems = {_problem(detail, layer, kind) for detail in error.errors(include_url=False)}
    told = sorted(_once(problems))
    paths = [problem.path for problem in told]
    return [str(problem) for problem in told], _where_to_read(paths, kind)


def _where_to_read(paths: Sequence[Location], kind: Kind) -> str:
    known = shape.keys_of(kind.schema)
    sections = {path[0] for path in map(in_a_run, paths) if path and path[0] in known}
    if len(sections) == 1:
        return f"`{kind.explained} {sections.pop()}` explains what may stand there"
    return f"`{kind.explained} --keys` explains every key"


def _once(problems: Set[_Problem]) -> list[_Problem]:
    """Without those that another says more precisely.

    That is one level up from another, or a missing key whose misspelling is there.
    """
    above = {problem.path[:depth] for problem in problems for depth in range(len(problem.path))}
    misspelled = [f"{problem.meant}." for problem in problems if problem.meant]
    return [
        problem
        for problem in problems
        if problem.path not in above
        and (problem.meant or not _begins(misspelled, f"{_key_at(problem.path)}."))
    ]


def _begins(keys: Sequence[str], start: str) -> bool:
    return any(key.startswith(start) for key in keys)


def _key_at(path: Location) -> str:
    return ".".join(part for part in in_a_run(path) if isinstance(part, str))


def _problem(detail: ErrorDetails, layer: Layer, kind: Kind) -> _Problem:
    location = detail["loc"]
    within = location[:-1] if detail["type"] in ("extra_forbidden", "missing") else location
    spot = _trace(within, layer.values, kind)
    match detail["type"]:
        case "extra_forbidden":
            key = str(location[-1])
            meant = _meant(key, spot, kind)
            sentence = _unknown_key(key, meant, spot, kind)
            return replace(_at(layer, spot, sentence, key), meant=meant)
        case "missing":
            key = str(location[-1])
            return _at(layer, spot, _missing(key, spot), key)
        case "union_tag_invalid" | "union_tag_not_found":
            return _unknown_member(detail["input"], spot, layer)
        case "value_error":
            return _at(layer, spot, str(detail["ctx"]["error"]))
        case _:
            return _at(layer, spot, _unexpected(spot, layer))


def _trace(location: Location, values: Any, kind: Kind) -> _Spot:
    annotation: Any = kind.schema
    expected: Any = kind.schema
    written: Location = ()
    path: Location = ()
    for part in location:
        annotation, is_key = shape.descend(annotation, part)
        if not is_key:
            continue
        path = (*path, part)
        if _has(values, part):
            values, written, expected = values[part], (*written, part), annotation
    return _Spot(written, path, expected, annotation)


def _has(values: Any, part: int | str) -> bool:
    if isinstance(values, tuple):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, dict) and part in values


def _at(layer: Layer, spot: _Spot, sentence: str, key: str | None = None) -> _Problem:
    written = spot.written if key is None else (*spot.written, key)
    path = spot.path if key is None else (*spot.path, key)
    written, path = layer.home(written), layer.home(path)
    where = dotted(written) or "recipe"
    return _Problem(layer.origin(written), where, sentence, path)


def _meant(key: str, spot: _Spot, kind: Kind) -> str:
    """The dotted key that `key` was probably meant to be; empty when nothing is near."""
    if key in kind.habits:
        return kind.habits[key]
    owners, here = shape.owners(kind.schema), _key_at(spot.path)
    if key in owners or key in kind.advice:
        return ""
    if close := nearest(key, _known(spot)):
        return f"{here}.{close}".lstrip(".")
    if far := nearest(key, list(owners), alike=0.75):
        return f"{owners[far][0].path}.{far}".lstrip(".")
    return ""


def _unknown_key(key: str, meant: str, spot: _Spot, kind: Kind) -> str:
    here, known = _key_at(spot.path), _known(spot)
    if meant:
        return f"unknown key; did you mean `{meant.removeprefix(f'{here}.')}`?"
    if key in kind.advice:
        return f"unknown key; {kind.advice[key]}"
    if elsewhere := shape.owners(kind.schema).get(key):
        return f"unknown key; {_belongs(key, here, elsewhere)}"
    return f"unknown key; expected {shape.either([f'`{name}`' for name in known])}"


def _known(spot: _Spot) -> list[str]:
    return [key for _, section in shape.sections(spot.within) for key in shape.keys_of(section)]


def _belongs(key: str, here: str, elsewhere: Sequence[shape.Owner]) -> str:
    if tags := [owner.tag for owner in elsewhere if owner.path == here and owner.tag]:
        return f"only {shape.either([f'`{tag}`' for tag in tags])} has `{key}`"
    places = [f"`{owner.path}`" if owner.path else "the top level" for owner in elsewhere]
    return f"it belongs to {shape.either(list(dict.fromkeys(places)))}"


def _missing(key: str, spot: _Spot) -> str:
    annotation, _ = shape.descend(spot.within, key)
    given = shape.example(annotation)
    return f"required key is missing{f'; for example `{key}: {given}`' if given else ''}"


def _unknown_member(value: Any, spot: _Spot, layer: Layer) -> _Problem:
    key = shape.discriminator(spot.expected)
    tags = [tag for tag, _ in shape.sections(spot.expected)]
    if key is None or not isinstance(value, dict):
        given = f"`{{{key}: {tags[0]}}}`" if key else "keys"
        return _at(layer, spot, f"expected a section such as {given}, got {shown(value)}")
    return _at(layer, spot, _not_a_word(value.get(key), tags), key)


def _unexpected(spot: _Spot, layer: Layer) -> str:
    value: Any = layer.values
    for part in spot.written:
        value = value[part]
    words = shape.words(spot.expected)
    if isinstance(value, str) and (close := nearest(value, words)):
        return f"{shown(value)} is not known; did you mean `{close}`?"
    expected = shape.describe(spot.expected)
    spelled = layer.origin(layer.home(spot.written)).spelled
    return f"expected {expected}, got {shown(value, spelled)}{_quoting(value, expected)}"


def _not_a_word(value: Any, words: Sequence[str]) -> str:
    if isinstance(value, str) and (close := nearest(value, words)):
        return f"{shown(value)} is not known; did you mean `{close}`?"
    return f"expected {shape.either([f'`{word}`' for word in words])}, got {shown(value)}"


def _quoting(value: Any, expected: str) -> str:
    """What to do about a number in quotes, or text that reads as a number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and "text" in expected:
        return "; put it in quotes"
    if value in ("true", "false") and "`true`" in expected:
        return " as text; remove the quotes"
    if not isinstance(value, str) or "number" not in expected:
        return ""
    plain = value.replace("_", "").replace(",", "").strip()
    if not _reads_as_number(plain):
        return ""
    return " as text; remove the quotes" if plain == value else f"; write `{plain}`"


def _reads_as_number(text: str) -> bool:
    try:
        value = scalar(text)
    except ValueError:  # a number, but not one that can be used
        return False
    return isinstance(value, int | float) and not isinstance(value, bool)
