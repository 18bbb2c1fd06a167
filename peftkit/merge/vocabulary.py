"""Rows of embeddings and heads matched by their tokens, where models have different vocabularies.

A row's number means nothing by itself: the same token has another number in another tokenizer, and
vocabularies are padded to round numbers. Tokens are compared as the tokenizers spell them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from peftkit.base.locate import Origin
from peftkit.errors import InputError, RunError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

Rule = Literal["same", "base", "union"]
"""`same`: all must agree. `base`: the base's tokens; what others have besides is left out.
`union`: also tokens that were added to others, with the mean of the rows in models that know them.

What a model does not know it does not change; rows without a token stay as the base has them.
"""
OLDER = ("vocab*", "*.model", "*.tiktoken")
"""Files of a tokenizer that has no `tokenizer.json`."""
UNKNOWN = -1
"""In place of the number of a row: the model has none for this token."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """How the rows of the result's vocabulary stand to those of each model."""

    rows: int | None = None
    """How many there are; None where it is as in the base."""
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    """By model that differs: for each row of the result its own row, or `UNKNOWN`."""
    new: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """Rows of tokens that the base lacks, and which row each model has for it."""
    tokenizer: Any = None
    """With the new tokens; None where it is the base's."""
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_tokens(folder: Path) -> dict[str, int] | None:
    """The tokens of a model's tokenizer and their numbers; None where it brings none.

    Raises:
        InputError: the tokenizer's file cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return _read_other(folder)
    whole = _read(path)
    try:
        vocabulary = whole["model"]["vocab"]
        if isinstance(vocabulary, list):  # pieces with their scores, by number
            vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
        added = {each["content"]: each["id"] for each in whole.get("added_tokens") or ()}
        return {**vocabulary, **added}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"`{path}` is no tokenizer: it has no list of tokens") from None


def _read_other(folder: Path) -> dict[str, int] | None:
    """The same of a tokenizer in an older layout, which only its own family's code can read."""
    if not any(path for kind in OLDER for path in folder.glob(kind)):
        return None
    from peftkit.base.load import load_tokenizer

    return dict(load_tokenizer(Origin(str(folder), folder, None)).get_vocab())


def digest_tokens(folder: Path) -> str | None:
    """A digest of which tokens there are, their numbers, and how text becomes them.

    Files that say the same in other words, as versions of one library do, have one digest.
    """
    tokens = read_tokens(folder)
    if tokens is None:
        return None
    path = folder / "tokenizer.json"
    merges = (_read(path)["model"].get("merges") or []) if path.exists() else []
    pairs = [each if isinstance(each, str) else " ".join(each) for each in merges]
    text = json.dumps([sorted(tokens.items()), pairs])
    return hashlib.sha256(text.encode()).hexdigest()


def align(
    rule: Rule, base: Origin, rows: int, models: Mapping[str, tuple[Origin, int]]
) -> Alignment:
    """Match the vocabularies of some models with that of their base.

    Args:
        rule: what becomes of tokens that not all have.
        base: where the base is.
        rows: of its embedding.
        models: by name, where each is and how many rows its embedding has.

    Raises:
        InputError: they differ and must not, or cannot be matched.
    """
    own = digest_tokens(base.folder)
    differing = {}
    for name, (origin, count) in models.items():
        theirs = digest_tokens(origin.folder)
        if count == rows and (theirs == own or theirs is None):
            continue
        _refuse(rule, name, (own, theirs), (rows, count))
        differing[name] = (origin, count)
    if not differing:
        return Alignment(facts={"rule": rule, "digest": own})
    return _match(rule, base, rows, differing)


def _refuse(
    rule: Rule, name: str, digests: tuple[str | None, str | None], rows: tuple[int, int]
) -> None:
    if None in digests:
        who = "the base" if digests[0] is None else f"`{name}`"
        raise InputError(
            f"`{name}` has {rows[1]} rows of tokens and the base {rows[0]}, and {who} has no "
            "tokenizer.json that says which is which",
            hint="put the tokenizer that it was trained with into its folder",
        )
    if rule == "same":
        what = (
            f"`{name}` has another tokenizer than the base"
            if digests[0] != digests[1]
            else f"`{name}` has {rows[1]} rows of tokens, and the base {rows[0]}"
        )
        raise InputError(
            f"{what}: rows of one number are not of one token",
            hint="`output.vocabulary: base` matches rows by their tokens and keeps the base's; "
            "`union` keeps tokens that were added to others, too",
        )


def _match(
    rule: Rule, base: Origin, rows: int, models: Mapping[str, tuple[Origin, int]]
) -> Alignment:
    tokens = read_tokens(base.folder) or {}
    lists = {name: _known(origin, count) for name, (origin, count) in models.items()}
    tokenizer, wanted = None, dict(tokens)
    extra = {t: None for known in lists.values() for t in known if t not in tokens}
    if rule == "union" and extra:
        tokenizer = _teach(base, list(extra), models)
        learned = tokenizer.get_vocab()
        wanted |= {token: int(learned[token]) for token in extra}
    total = max(rows, max(wanted.values()) + 1)
    maps = {name: torch.full((total,), UNKNOWN) for name in models}
    new: dict[int, dict[str, int]] = {}
    for token, row in wanted.items():
        for name, known in lists.items():
            if token not in known:
                continue
            if token in tokens:
                maps[name][row] = known[token]
            else:
                new.setdefault(row, {})[name] = known[token]
    facts = {
        "rule": rule,
        "digest": digest_tokens(base.folder),
        "rows": total,
        "new_tokens": len(new),
        "models": {
            name: {
                "digest": digest_tokens(models[name][0].folder),
                "shared": sum(token in tokens for token in known),
                "left_out": sum(token not in wanted for token in known),
                "unknown": sum(token not in known for token in tokens),
            }
            for name, known in lists.items()
        },
    }
    return Alignment(total if total != rows else None, maps, new, tokenizer, facts)


def _known(origin: Origin, rows: int) -> dict[str, int]:
    """The tokens that a model has rows for."""
    return {t: row for t, row in (read_tokens(origin.folder) or {}).items() if row < rows}


def _teach(base: Origin, extra: Sequence[str], models: Mapping[str, tuple[Origin, int]]) -> Any:
    """The base's tokenizer with tokens that were added to others.

    Raises:
        InputError: a token is a piece of another vocabulary, which comes about by merging others.
    """
    from transformers import AddedToken

    from peftkit.base.load import load_tokenizer

    added: dict[str, Any] = {}
    for origin, _ in models.values():
        for each in _read(origin.folder / "tokenizer.json").get("added_tokens") or ():
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            told = {flag: bool(each.get(flag)) for flag in flags}
            added.setdefault(each["content"], AddedToken(each["content"], **told))
    if pieces := [token for token in extra if token not in added]:
        raise InputError(
            f"`{pieces[0]}` and {len(pieces) - 1} more are pieces of another vocabulary, not "
            "tokens that were added: the base's tokenizer would never make them",
            hint="`output.vocabulary: base` leaves them out",
        )
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens([added[token] for token in extra])
    return tokenizer


def write_vocabulary(alignment: Alignment, folder: Path) -> None:
    """Put the tokenizer with new tokens into a model's folder, and its size into `config.json`.

    Raises:
        RunError: nobody knows where the configuration says how many rows there are.
    """
    if alignment.tokenizer is not None:
        alignment.tokenizer.save_pretrained(str(folder))
    if alignment.rows is None:
        return
    path = folder / "config.json"
    config = _read(path)
    nested = config.get("text_config")
    inner = nested if isinstance(nested, dict) else {}
    sizes = [each for each in (config, inner) if "vocab_size" in each]
    if not sizes:
        raise RunError(f"`{path.name}` does not say `vocab_size`, and the vocabulary grew")
    for each in sizes:
        each["vocab_size"] = alignment.rows
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise InputError(f"`{path}` cannot be read: {problem}") from None
    if not isinstance(values, dict):
        raise InputError(f"`{path}` is not an object of keys")
    return values
