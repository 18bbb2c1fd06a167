"""Every key of a recipe with what it may be, its default and its meaning, read off the schema."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from peftkit.errors import RecipeError
from peftkit.recipe import shape
from peftkit.recipe.kinds import RECIPE
from peftkit.recipe.sections.section import Expected
from peftkit.recipe.spelling import did_you_mean, flow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from peftkit.recipe.kinds import Kind


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


def keys(under: str = "", kind: Kind = RECIPE) -> tuple[Key, ...]:
    """Every key at or below `under`, in the order of a recipe, or of another kind of document.

    Raises:
        RecipeError: there is no such key.
    """
    known = tuple(_keys(kind.schema, "", "", set()))
    start = f"{under}." if under else ""
    found = tuple(key for key in known if f"{key.name}.".startswith(start))
    if not found:
        names = [name for key in known for name in _with_sections(key.name)]
        raise RecipeError(
            f"a {kind.called} has no key `{under}`{did_you_mean(under, names)}",
            hint=f"`{kind.explained} --keys` lists them all",
        )
    return found


def _keys(
    section: type[BaseModel], path: str, tag: str, seen: set[type[BaseModel]]
) -> Iterator[Key]:
    chosen_by = shape.selector(section, tag)
    for name, info in shape.keys_of(section).items():
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
    """Keys, one that several kinds of a section have in the same way only once."""
    owners: dict[Key, list[str]] = {}
    for key in found:
        owners.setdefault(replace(key, belongs=""), []).append(key.belongs)
    for key, belongs in owners.items():
        every = [each.rpartition(": ")[2] for each in belongs]
        chosen_by = belongs[0].rpartition(": ")[0]
        only = f"{chosen_by}: {shape.either(every)}" if chosen_by and len(every) < kinds else ""
        yield replace(key, belongs=belongs[0] if kinds == 1 else only)


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
