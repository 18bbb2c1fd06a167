"""What two changes become when they are added: part by part, or a reason why they have no sum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from peftkit.adapters.expected import TOKEN_ROWS
from peftkit.adapters.task_file import PLAIN
from peftkit.adapters.verify import other_base
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from peftkit.merge.delta import Delta

Part = TypeVar("Part")
TOKENIZER_FILES = ("tokenizer*", "special_tokens*", "added_tokens*", "vocab*", "merges*", "*.jinja")


@dataclass(frozen=True, slots=True)
class Term:
    """An adapter in a sum: its name, its digest and what it is multiplied by."""

    name: str
    digest: str
    weight: float = 1.0


def join_parts(
    one: Mapping[str, Part], other: Mapping[str, Part], add: Callable[[Part, Part, str], Part]
) -> dict[str, Part]:
    """The parts of both by name, those of one name added."""
    total = dict(one)
    for name, part in other.items():
        total[name] = add(total[name], part, name) if name in total else part
    return total


def add_whole(one: Tensor, other: Tensor, name: str) -> Tensor:
    """The sum of two changes of a whole parameter.

    Raises:
        InputError: their shapes differ.
    """
    if one.shape != other.shape:
        raise InputError(
            f"`{name}` has shape {tuple(one.shape)} in one and {tuple(other.shape)} in another",
            hint="only changes of one base can be added",
        )
    return one + other


def refuse_two(one: Tensor, other: Tensor, name: str) -> Tensor:
    """What both bring, if it is the same.

    Raises:
        InputError: it is not.
    """
    if one.shape == other.shape and torch.equal(one, other):
        return one
    raise InputError(
        f"both adapters bring `{name}` of their own, which is no change of the base: it has no sum",
        hint="say whose it shall be: `--set 'heads={keep: NAME}'`",
    )


def agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What both say, the first one first; where they name different bases, nothing can be added.

    Raises:
        InputError: they are of different bases or tasks.
    """
    names = [each.get("base") for each in (one, other)]
    if names[1] is not None and other_base(names[0], names[1]):
        raise InputError(
            f"the adapters are of different bases: `{names[0]}` and `{names[1]}`",
            hint="only changes of one base can be added",
        )
    tasks = [each.get("task_type") for each in (one, other)]
    if None not in tasks and tasks[0] != tasks[1]:
        raise InputError(f"the adapters are of different tasks: {tasks[0]} and {tasks[1]}")
    both = {**other, **{key: value for key, value in one.items() if value is not None}}
    if one.get("task") == PLAIN:
        both["task"] = other.get("task") or PLAIN
    under = [note for each in (one, other) for note in each.get("under", ())]
    both["under"] = [note for place, note in enumerate(under) if note not in under[:place]]
    heads = [name for each in (one, other) for name in each.get("modules_to_save") or ()]
    return both | {"modules_to_save": list(dict.fromkeys(heads)) or None}


def agree_all(deltas: Sequence[Delta]) -> dict[str, Any]:
    """What all say; who brings a head says what it is for.

    Raises:
        InputError: they are of different bases or tasks, or bring rows of different tokens.
    """
    with_rows = [delta.facts for delta in deltas if _brings_rows(delta)]
    for other in with_rows[1:]:
        _refuse_other_tokens(with_rows[0], other)
    heads_first = sorted(deltas, key=lambda delta: not delta.kept)
    return reduce(agree, [delta.facts for delta in heads_first], {})


def _brings_rows(delta: Delta) -> bool:
    return any(name.endswith(TOKEN_ROWS) for name in delta.kept)


def _refuse_other_tokens(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Say where rows stand for different tokens, though they may hold the same numbers."""
    rows = [each["trainable_token_indices"] for each in (one, other)]
    if rows[0] != rows[1]:
        raise InputError(
            f"the adapters bring rows of different tokens: {rows[0]} and {rows[1]}",
            hint=f"`--without '*{TOKEN_ROWS}'` leaves them out",
        )
    said = [
        {p.name: p.read_bytes() for p in tokenizer_files(each["folder"])} for each in (one, other)
    ]
    if said[0] != said[1]:
        raise InputError(
            "the adapters bring rows of new tokens for different tokenizers",
            hint=f"`--without '*{TOKEN_ROWS}'` leaves them out",
        )


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder that say which tokens there are."""
    found = {path for kind in TOKENIZER_FILES for path in folder.glob(kind)}
    return sorted(path for path in found if path.is_file())


def collect(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """Every adapter once, with all it is multiplied by."""
    found: dict[tuple[str, str], Term] = {}
    for term in terms:
        key = (term.name, term.digest)
        before = found.get(key)
        found[key] = term if before is None else replace(term, weight=before.weight + term.weight)
    return tuple(found.values())
