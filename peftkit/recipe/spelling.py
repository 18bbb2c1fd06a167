"""Spell words and values: the nearest word someone knows, and a value as a recipe has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST = 60


def nearest(word: str, known: Sequence[str], *, alike: float = 0.6) -> str | None:
    """The one of `known` that `word` was probably meant to be, whatever its case."""
    from difflib import get_close_matches  # on the way to an error only

    folded = {name.lower(): name for name in reversed(known)}
    close = get_close_matches(word.lower(), list(folded), n=1, cutoff=alike)
    return folded[close[0]] if close else None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a sentence about `word`; empty when nothing is near."""
    close = nearest(word, known)
    return f"; did you mean `{close}`?" if close else ""


def flow(value: Any) -> str:
    """A value in the flow style of YAML, such as `{rows: [1, 2]}`."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow(child)}' for key, child in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def shown(value: Any, spelled: str = "") -> str:
    """A value for a sentence: in backticks, on one line, not too long."""
    if value is None or value == "":
        return "nothing" if value is None else "an empty text"
    return f"`{_brief(spelled or flow(value))}`"


def dotted(location: Sequence[int | str]) -> str:
    """A place in a recipe, as `--set` takes it: `data.train.0.source`."""
    return _brief(".".join(map(str, location)))


def _brief(text: str) -> str:
    """On one line, without control characters, not too long."""
    text = text[: _LONGEST + 1]
    text = text if text.isprintable() else text.encode("unicode_escape").decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
