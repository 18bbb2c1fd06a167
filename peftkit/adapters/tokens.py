"""Tokens that an adapter from anywhere brings rows for, read off its JSON alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from peftkit.adapters.verify import CONFIG_FILE
from peftkit.base.load import load_tokenizer
from peftkit.base.locate import locate
from peftkit.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from peftkit.recipe.sections.base import BaseSection

TOKENIZER = "tokenizer.json"
LARGEST = 256 * 1024 * 1024
"""Bytes of a tokenizer's file that are read."""


def token_rows(folder: Path) -> list[int]:
    """Ids of the tokens whose rows the adapter of `folder` replaces; mostly none."""
    wanted = _read(folder / CONFIG_FILE).get("trainable_token_indices") or []
    rows = next(iter(wanted.values()), []) if isinstance(wanted, dict) else wanted
    return sorted(rows) if isinstance(rows, list) and all(type(n) is int for n in rows) else []


def added_tokens(folder: Path, base: BaseSection) -> tuple[str, ...]:
    """The tokens among them that the base lacks, in the order of their ids.

    Raises:
        InputError: the folder has rows for ids that neither the base nor its tokenizer names.
    """
    rows = token_rows(folder)
    if not rows or not (folder / TOKENIZER).is_file():
        return ()
    known = set(load_tokenizer(locate(base)).get_vocab().values())
    entries = _read(folder / TOKENIZER).get("added_tokens")
    named = {
        entry["id"]: entry["content"]
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and "id" in entry
    }
    new = [row for row in rows if row not in known]
    if unnamed := [row for row in new if row not in named]:
        raise InputError(
            f"`{folder}` has a row for token {unnamed[0]}, which neither `{base.model}` nor its "
            f"own {TOKENIZER} names",
            hint="it may be for another base; get it from its author again",
        )
    return tuple(named[row] for row in new)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > LARGEST:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise InputError(f"`{path}` is not JSON: {problem}") from None
    return values if isinstance(values, dict) else {}
