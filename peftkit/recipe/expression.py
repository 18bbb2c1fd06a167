"""`chat + 0.7*code - 0.5*toxic` as a number for each adapter: it must be linear in them."""

from __future__ import annotations

import ast
import math
from typing import TYPE_CHECKING

from peftkit.errors import RecipeError
from peftkit.recipe.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection

LONGEST = 2000
"""Characters; a longer one is no formula that a person wrote."""
Linear = dict[str, float]
"""The number that each adapter is multiplied by; "" is a number that stands alone."""


def parse(text: str, names: Collection[str]) -> Linear:
    """What each named adapter is multiplied by, in the order in which they first stand.

    Raises:
        RecipeError: it is no sum of adapters times numbers, or a name is unknown.
    """
    if len(text) > LONGEST:
        raise RecipeError(f"expression: longer than {LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        found = _value(tree.body, text, names)
    except SyntaxError as problem:
        raise _refused(text, f"it cannot be read from character {problem.offset} on") from None
    except (ValueError, RecursionError, MemoryError):
        raise _refused(text, "it is nested too deeply, or is no text") from None
    if found.get("", 0.0):
        raise _refused(text, f"the number {found['']:g} stands alone, without an adapter")
    found.pop("", None)
    if not found:
        raise _refused(text, "it names no adapter")
    return found


def explain(weights: Linear) -> str:
    """The formula with its numbers, every adapter once."""
    signs = [("-" if weight < 0 else "+", abs(weight), name) for name, weight in weights.items()]
    text = " ".join(f"{sign} {size:g}*{name}" for sign, size, name in signs)
    return text.removeprefix("+ ") if text.startswith("+") else "-" + text.removeprefix("- ")


def _value(node: ast.expr, text: str, names: Collection[str]) -> Linear:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return {"": _finite(float(number), text)}
        case ast.Name(id=name):
            if name not in names:
                raise _refused(
                    text, f"no adapter is called `{name}`{did_you_mean(name, list(names))}"
                )
            return {name: 1.0}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=inner):
            factor = -1.0 if isinstance(sign, ast.USub) else 1.0
            return _times(_value(inner, text, names), factor, text)
        case ast.BinOp(left=left, op=operator, right=right):
            one, other = _value(left, text, names), _value(right, text, names)
            return _combine(one, operator, other, text)
    raise _refused(text, f"`{ast.unparse(node)}` is neither a number nor an adapter")


def _combine(one: Linear, operator: ast.operator, other: Linear, text: str) -> Linear:
    match operator:
        case ast.Add() | ast.Sub():
            sign = 1.0 if isinstance(operator, ast.Add) else -1.0
            total = dict(one)
            for name, weight in other.items():
                total[name] = _finite(total.get(name, 0.0) + sign * weight, text)
            return total
        case ast.Mult() if one.keys() <= {""}:
            return _times(other, one.get("", 0.0), text)
        case ast.Mult() if other.keys() <= {""}:
            return _times(one, other.get("", 0.0), text)
        case ast.Mult():
            raise _refused(text, "adapters can be multiplied by numbers, not by each other")
        case ast.Div() if other.keys() <= {""} and other.get(""):
            return _times(one, 1 / other[""], text)
        case ast.Div():
            raise _refused(text, "it divides by zero, or by an adapter")
    raise _refused(text, "it may use + - * / and brackets only")


def _times(value: Linear, factor: float, text: str) -> Linear:
    return {name: _finite(weight * factor, text) for name, weight in value.items()}


def _finite(number: float, text: str) -> float:
    if math.isfinite(number):
        return number
    raise _refused(text, "a number in it is not finite")


def _refused(text: str, why: str) -> RecipeError:
    return RecipeError(
        f"expression: `{text[:80]}`: {why}",
        hint='write it like `peftkit merge "chat + 0.7*code - 0.5*toxic" --adapter chat=PATH '
        "--adapter code=PATH --adapter toxic=PATH --out merged`",
    )
