"""Ask the schema questions: what may stand here, what is it called, where does a key belong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from peftkit.recipe.sections.section import Expected

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NOUNS: dict[Any, tuple[str, str]] = {
    bool: ("`true` or `false`", "`true` or `false`"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
}
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}


@dataclass(frozen=True)
class Owner:
    """A section that knows some key."""

    path: str
    """Dotted, as in `train.batch`."""
    tag: str
    """Which member of a tagged union, as in `lora`; empty elsewhere."""
    section: type[BaseModel]


def members(annotation: Any, tag: str = "") -> Iterator[tuple[str, Any]]:
    """Every choice an annotation offers, each with its tag where the union is tagged."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        yield from members(inner, next((x.tag for x in extra if isinstance(x, Tag)), tag))
    elif origin in (Union, UnionType):
        for choice in get_args(annotation):
            yield from members(choice, tag)
    else:
        yield tag, annotation


def sections(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """The sections an annotation can hold, each with its tag."""
    return [(tag, kind) for tag, kind in members(annotation) if _is_section(kind)]


def nested(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """The sections an annotation can hold, those in a list of them too, each with its tag."""
    found = []
    for tag, kind in members(annotation):
        found += nested(get_args(kind)[0]) if get_origin(kind) is tuple else sections(kind)
        found = [(own or tag, section) for own, section in found]
    return found


def descend(annotation: Any, part: int | str) -> tuple[Any, bool]:
    """What may stand at `part` of such a value, and whether `part` is a key at all.

    pydantic puts labels of its own among the keys of a location: the tag of the chosen member of
    a tagged union, and the name of each member it tried of any other.
    """
    choices = list(members(annotation))
    for tag, kind in choices:
        if tag and tag == part:
            return kind, False
    for _, kind in choices:
        if (child := _child(kind, part)) is not None:
            return child, True
    return annotation, False


def describe(annotation: Any) -> str:
    """What may stand there, as in "a whole number of at least 1 or `auto`"."""
    return either(_choices(annotation, ()))


def example(annotation: Any) -> str | None:
    """Something to type there, taken from the schema; None where the schema gives none."""
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        given = [x.examples[0] for x in extra if isinstance(x, FieldInfo) and x.examples]
        return str(given[0]) if given else example(inner)
    for _, section in sections(annotation):
        fields = {key: field_of(section, key) for key in keys_of(section)}
        needed = [key for key, info in keys_of(section).items() if info.is_required()]
        pairs = [f"{key}: {example(fields[key]) or '...'}" for key in needed]
        return f"{{{', '.join(pairs)}}}" if pairs else None
    return None


def words(annotation: Any) -> list[str]:
    """The fixed words that may stand there, such as `auto`."""
    literals = [kind for _, kind in members(annotation) if get_origin(kind) is Literal]
    return [word for kind in literals for word in get_args(kind) if isinstance(word, str)]


def discriminator(annotation: Any) -> str | None:
    """The key that says which member of a tagged union is meant, such as `method`."""
    keys = (selector(section, tag) for tag, section in sections(annotation))
    return next(filter(None, keys), None)


def selector(section: type[BaseModel], tag: str) -> str | None:
    """The key of a section that can hold its tag and nothing else, such as `method: lora`."""
    for key, info in keys_of(section).items():
        if tag and get_args(info.annotation) == (tag,):
            return key
    return None


def keys_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by the keys that people write."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def field_of(section: type[BaseModel], key: str) -> Any:
    """The annotation of a key, its constraints included."""
    info = keys_of(section)[key]
    return Annotated[info.annotation, info]


@cache
def owners(root: type[BaseModel]) -> dict[str, tuple[Owner, ...]]:
    """For every key of a document, the sections that know it, each section once."""
    known: dict[str, tuple[Owner, ...]] = {}
    for owner in _owners(root, ()):
        for key in keys_of(owner.section):
            earlier = known.get(key, ())
            if owner.section not in [other.section for other in earlier]:
                known[key] = (*earlier, owner)
    return known


def either(choices: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last


def _owners(annotation: Any, path: tuple[str, ...]) -> Iterator[Owner]:
    for tag, section in nested(annotation):
        yield Owner(".".join(path), tag, section)
        for key in keys_of(section):
            yield from _owners(field_of(section, key), (*path, key))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _child(kind: Any, part: int | str) -> Any | None:
    if _is_section(kind):
        return field_of(kind, str(part)) if part in keys_of(kind) else None
    if get_origin(kind) is tuple and isinstance(part, int):
        return get_args(kind)[0]
    if get_origin(kind) is dict and isinstance(part, str):
        return get_args(kind)[1]
    return None


def _choices(annotation: Any, facts: tuple[Any, ...]) -> list[str]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        if phrases := [x.phrase for x in _facts(extra) if isinstance(x, Expected)]:
            return phrases
        return _choices(inner, (*facts, *_facts(extra)))
    if origin in (Union, UnionType):
        return [word for choice in get_args(annotation) for word in _choices(choice, facts)]
    if origin is Literal:
        return [f"`{word}`" for word in get_args(annotation)]
    return [_one(annotation, facts)]


def _one(kind: Any, facts: tuple[Any, ...]) -> str:
    if get_origin(kind) is tuple:
        return f"a list of {_several(get_args(kind)[0], facts)}"
    if kind in _NOUNS:
        return " ".join([_NOUNS[kind][0], *_bounds(facts)])
    given = example(kind)
    return f"a section such as `{given}`" if given else "a section of keys"


def _several(entry: Any, facts: tuple[Any, ...]) -> str:
    least = [fact.min_length for fact in facts if getattr(fact, "min_length", None)]
    count = f"at least {least[0]} " if least else ""
    inner, *extra = get_args(entry) if get_origin(entry) is Annotated else (entry,)
    if inner in _NOUNS:
        return count + " ".join([_NOUNS[inner][1], *_bounds(_facts(extra))])
    return count + describe(entry)


def _facts(metadata: Sequence[Any]) -> tuple[Any, ...]:
    """Constraints, those that pydantic packs into a `Field` unpacked."""
    return tuple(
        fact
        for item in metadata
        for fact in (item.metadata if isinstance(item, FieldInfo) else (item,))
    )


def _bounds(facts: tuple[Any, ...]) -> list[str]:
    """`of at least 0 and below 1`, in pieces."""
    found = [
        f"{phrase} {limit:g}"
        for fact in facts
        for name, phrase in _BOUNDS.items()
        if (limit := getattr(fact, name, None)) is not None
    ]
    return [" and ".join(found)] if found else []
