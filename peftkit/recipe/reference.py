"""Every key of a recipe with what it may be, its default and its meaning, read off the schema."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from peftkit.errors import RecipeError
from peftkit.recipe import shape
from peftkit.recipe.schema import Recipe
from peftkit.recipe.sections.section import Expected
from peftkit.recipe.spelling import did_you_mean, flow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Key:
    """One key that a recipe may have."""

    name: str
    """Dotted, as `--set` takes it."""
    belongs: str
    """`method: lora` where only one kind of section has the key; empty elsewhere."""
    expected: str
    default: str
    """As a recipe would write it; empty when the key is required."""
    meaning: str


def keys(under: str = "") -> tuple[Key, ...]:
    """Every key at or below `under`, in the order of a recipe.

    Raises:
        RecipeError: there is no such key.
    """
    known = tuple(_keys(Recipe, "", "", set()))
    start = f"{under}." if under else ""
    found = tuple(key for key in known if f"{key.name}.".startswith(start))
    if not found:
        names = [name for key in known for name in _with_sections(key.name)]
        raise RecipeError(
            f"a recipe has no key `{under}`{did_you_mean(under, names)}",
            hint="`peftkit schema --keys` lists them all",
        )
    return found


def _keys(
    section: type[BaseModel], path: str, tag: str, seen: set[type[BaseModel]]
) -> Iterator[Key]:
    chosen_by = shape.selector(section, tag)
    for name, info in section.model_fields.items():
        if name == chosen_by:
            continue
        annotation, dotted = shape.field_of(section, name), f"{path}.{name}".lstrip(".")
        inside = shape.nested(annotation)
        if not inside or any(isinstance(fact, Expected) for fact in info.metadata):
            belongs = f"{chosen_by}: {tag}" if chosen_by else ""
            expected, meaning = shape.describe(annotation), info.description or ""
            yield Key(dotted, belongs, expected, _default(dotted, info), meaning)
        yield from _choice(annotation, dotted, info)
        found: list[Key] = []
        for own_tag, kind in inside:
            if kind not in seen:  # a source has the same keys wherever it stands
                seen.add(kind)
                found += _keys(kind, dotted, own_tag, seen)
        yield from _once(found, len(inside))


def _once(found: list[Key], kinds: int) -> Iterator[Key]:
    """Keys, those that each of several kinds of a section has in the same way only once."""
    alike = Counter(replace(key, belongs="") for key in found)
    told = set()
    for key in found:
        plain = replace(key, belongs="")
        if kinds == 1 or alike[plain] < kinds:
            yield key
        elif plain not in told:
            told.add(plain)
            yield plain


def _choice(annotation: Any, dotted: str, info: FieldInfo) -> Iterator[Key]:
    """The key that chooses among the sections that may stand here, such as `adapter.method`."""
    if name := shape.discriminator(annotation):
        kinds = {tag: kind.__doc__ or "" for tag, kind in shape.sections(annotation)}
        meaning = " ".join(f"`{tag}`: {doc.splitlines()[0]}" for tag, doc in kinds.items())
        default = getattr(info.default, name, "")
        yield Key(
            f"{dotted}.{name}", "", shape.either([f"`{tag}`" for tag in kinds]), default, meaning
        )


def _with_sections(dotted: str) -> Iterator[str]:
    parts = dotted.split(".")
    yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _default(dotted: str, info: FieldInfo) -> str:
    if dotted == "name":
        return "the stem of the file"
    if info.is_required():
        return ""
    default = info.get_default(call_default_factory=True)
    return flow(default.model_dump() if isinstance(default, BaseModel) else default)
