"""The turns of a chat: what each must be, which are learned, and the tools they may call."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from peftkit.data.control import texts_of
from peftkit.data.draft import UnusableError
from peftkit.data.example import LONE_SURROGATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.rows import Row
    from peftkit.recipe.sections.learn import LearnSection

Turn = dict[str, Any]
SPEAKS = "assistant"


class ChatError(UnusableError):
    """A conversation that cannot be put into the template."""


def turns_of(row: Row) -> list[Turn]:
    """The turns of a row, each checked.

    Raises:
        ChatError: one of them cannot be used.
    """
    turns = row.values["messages"]
    if not isinstance(turns, list | tuple) or not turns:
        raise ChatError(f"column `messages`: expected a list of turns, got `{str(turns)[:40]}`")
    for number, turn in enumerate(turns, start=1):
        if why := _misfit(turn):
            raise ChatError(f"turn {number}: {why}")
    if turns[0]["role"] == SPEAKS:
        raise ChatError("turn 1: the assistant speaks before anything is asked")
    return list(turns)


def tools_of(row: Row) -> list[Any] | None:
    """The tools that a chat may call, as its template takes them; None where there are none.

    Raises:
        ChatError: the column holds something else.
    """
    value = row.values.get("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ChatError(f"column `tools` is not JSON: `{value[:40]}`") from None
    fits = isinstance(value, list | tuple) and all(isinstance(tool, dict) for tool in value)
    if value and not fits:
        raise ChatError(f"column `tools`: expected a list of tools, got `{str(value)[:40]}`")
    if any(LONE_SURROGATE.search(text) for text in texts_of(value)):
        raise ChatError("column `tools` holds half a character")
    return list(value) if value else None


def choose_learned(turns: Sequence[Turn], learn: LearnSection) -> list[int]:
    """Numbers of the turns that carry loss: as the recipe says, or as a turn itself does."""
    named = [number for number, turn in enumerate(turns) if turn["role"] in learn.roles]
    chosen = set(named[-1:] if learn.turns == "last" else named)
    flags = [turn.get("train") for turn in turns]
    return [n for n, flag in enumerate(flags) if (n in chosen if flag is None else flag)]


def said(turn: Turn) -> str:
    """What a turn says, as a person reads it."""
    content = turn.get("content") or ""
    calls = turn.get("tool_calls")
    called = json.dumps(calls, ensure_ascii=False, default=str) if calls else ""
    return "\n".join(filter(None, (content, called)))


def _misfit(turn: Any) -> str:
    """Why a turn cannot be used; empty where it can."""
    calls = turn.get("tool_calls") if isinstance(turn, dict) else None
    if not isinstance(turn, dict) or "role" not in turn or not ("content" in turn or calls):
        return f"expected `role` and `content`, got `{str(turn)[:40]}`"
    role, content, flag = turn["role"], turn.get("content"), turn.get("train")
    listed = isinstance(calls, list | tuple) and all(isinstance(call, dict) for call in calls)
    expected = (
        ("a role", role, isinstance(role, str)),
        ("text", content, isinstance(content, str) or (content is None and calls)),
        ("a list of `tool_calls`", calls, not calls or listed),
        ("`train: true` or `false`", flag, flag is None or isinstance(flag, bool)),
    )
    for wanted, found, fits in expected:
        if not fits:
            return f"expected {wanted}, got `{str(found)[:40]}`"
    if any(LONE_SURROGATE.search(text) for text in texts_of(turn)):
        return "holds half a character"
    if role == SPEAKS and not (content or "").strip() and not calls:
        return "the assistant says nothing"
    return ""
