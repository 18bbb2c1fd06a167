"""Parameters of a merge method: read from a recipe, every problem told at once.

They are frozen dataclasses whose fields carry their range, so that a value made in Python is
checked like one from a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from peftkit.errors import RecipeError
from peftkit.recipe.spelling import did_you_mean, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SPELLINGS = {"lambda": "scaling"}
"""Keys that are no names in Python."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a field may be: more than `above`, from `least` up to `most`."""

    above: float = -math.inf
    least: float = -math.inf
    most: float = math.inf

    def __contains__(self, value: object) -> bool:
        """Whether a value is one of these numbers."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and value > self.above and self.least <= value <= self.most

    def __str__(self) -> str:
        """In words."""
        words = [f"more than {self.above:g}"] * (self.above > -math.inf)
        words += [f"at least {self.least:g}"] * (self.least > -math.inf)
        words += [f"at most {self.most:g}"] * (self.most < math.inf)
        return f"a number{': ' * bool(words)}{' and '.join(words)}"


def number(default: float, **limits: float) -> Any:
    """A field for a number within limits: `above`, `least`, `most`."""
    return field(default=default, metadata={"range": Range(**limits)})


class Parameters:
    """What a method may be told; made only of values it can work with.

    Raises:
        RecipeError: a value is out of range.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise RecipeError("the method cannot be used like this", problems=problems)


@dataclass(frozen=True, slots=True)
class NoParameters(Parameters):
    """A method that is told nothing."""


@dataclass(frozen=True, slots=True)
class Scaled(Parameters):
    """What the merged change is multiplied by."""

    scaling: float = number(1.0)


Read = TypeVar("Read", bound=Parameters)


def read_parameters(kind: type[Read], given: Mapping[str, Any], method: str) -> Read:
    """The parameters of a method, from the keys of a recipe.

    Raises:
        RecipeError: a key is unknown, or a value out of range.
    """
    try:
        return _read(kind, given)
    except RecipeError as problem:
        raise RecipeError(
            f"method `{method}` cannot be used like this",
            problems=problem.problems or [problem.message],
        ) from None


def _read(kind: type[Read], given: Mapping[str, Any]) -> Read:
    hints = _hints(kind)
    values: dict[str, Any] = {}
    unknown = []
    for key, value in given.items():
        name = SPELLINGS.get(key, key)
        if name not in hints:
            known = f"; expected {', '.join(f'`{each}`' for each in hints) or 'nothing'}"
            unknown.append(f"{key}: unknown key{did_you_mean(key, list(hints)) or known}")
            continue
        inner = hints[name]
        nested = isinstance(inner, type) and issubclass(inner, Parameters)
        values[name] = _read(inner, value) if nested and hasattr(value, "items") else value
    if unknown:
        raise RecipeError("unknown keys", problems=unknown)
    return kind(**values)


def _problems(parameters: Any) -> Iterator[str]:
    hints = _hints(type(parameters))
    for each in fields(parameters):
        value, expected = getattr(parameters, each.name), hints[each.name]
        if limits := each.metadata.get("range"):
            whole = expected is int and not isinstance(value, int)
            if whole or value not in limits:
                what = str(limits).replace("number", "whole number") if expected is int else limits
                yield f"{each.name}: expected {what}, got {shown(value)}"
        elif get_origin(expected) is Literal:
            if value not in get_args(expected):
                words = ", ".join(f"`{word}`" for word in get_args(expected))
                yield f"{each.name}: expected one of {words}, got {shown(value)}"
        elif not isinstance(value, expected):
            yield f"{each.name}: expected {_called(expected)}, got {shown(value)}"


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _called(expected: type) -> str:
    if expected is bool:
        return "`true` or `false`"
    return "keys" if issubclass(expected, Parameters) else f"a {expected.__name__}"
