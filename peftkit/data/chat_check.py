"""The gate on every run: chats are tokenized as the tokenizer's own `apply_chat_template` does it.

Checked are the first chat of each shape, the 1st, 2nd, 4th, 8th … of a source, and each of which
something is not sure. What carries loss is found a second time there, from tokens alone: those that
come before a turn, and those up to its end, must begin the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from peftkit.data.turns import SPEAKS, Turn, choose_learned
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.draft import Draft, Encoder

SHAPES = 64
"""Different orders of roles of which each has its first chat checked."""


@dataclass(slots=True)
class ChatGate:
    """Compares some of a source's chats, as they come, with the tokenizer's own way."""

    encoder: Encoder
    seen: int = 0
    shapes: set[tuple[str, ...]] = field(default_factory=set)

    def wants(self, draft: Draft) -> bool:
        """Whether the next chat is one of those to be looked at."""
        new = draft.roles not in self.shapes and len(self.shapes) < SHAPES
        due = self.seen & (self.seen - 1) == 0
        self.seen += 1
        if new:
            self.shapes.add(draft.roles)
        return (new or due or draft.unsure) and not draft.typed

    def check(self, draft: Draft, turns: Sequence[Turn], tools: Any, where: str) -> None:
        """Stop the run if this chat is not as it should be.

        Raises:
            InputError: its tokens, or what is learned of them, are others.
        """
        ids, trained = find_plainly(turns, tools, self.encoder)
        if ids != list(draft.ids):
            raise _differs(where, "tokens", ids, list(draft.ids))
        if trained is not None and trained != list(draft.trained):
            raise _differs(where, "what is learned", trained, list(draft.trained))


def find_plainly(
    turns: Sequence[Turn], tools: Any, encoder: Encoder
) -> tuple[list[int], list[bool] | None]:
    """Tokens of a chat and what is learned of it, each turn tokenized by the tokenizer itself.

    The second is None where tokens alone do not tell: a turn other than the assistant's is learned,
    or the tokens before one are not how the whole begins.
    """
    tokenizer = encoder.tokenizer
    shown = [{name: turn[name] for name in turn if name != "train"} for turn in turns]
    full = _tokens(shown, tools, tokenizer)
    trained = [False] * len(full)
    for number in choose_learned(turns, encoder.learn):
        try:
            before = _tokens(shown[:number], tools, tokenizer, ask=True)
            after = _tokens(shown[: number + 1], tools, tokenizer)
        except (TemplateError, TypeError, ValueError):
            return full, None
        own = turns[number]["role"] == SPEAKS
        if not own or full[: len(after)] != after or after[: len(before)] != before:
            return full, None
        stops = [place for place in range(len(before), len(after)) if full[place] in encoder.stops]
        end = stops[-1] + 1 if stops else len(before)
        trained[len(before) : end] = [True] * (end - len(before))
    trained[:1] = [False]
    return full, trained


def _tokens(turns: Sequence[Turn], tools: Any, tokenizer: Any, *, ask: bool = False) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        turns, tools=tools, add_generation_prompt=ask, return_dict=True
    )
    ids: list[int] = encoded["input_ids"]
    return ids


def _differs(where: str, what: str, right: list[Any], found: list[Any]) -> InputError:
    place = next(
        (p for p, (one, other) in enumerate(zip(right, found, strict=False)) if one != other),
        min(len(right), len(found)),
    )
    return InputError(
        f"{where}: {what} would differ from the tokenizer's own `apply_chat_template`, at token "
        f"{place} of {len(right)}; nothing was trained",
        hint="this is a fault of peftkit or of the tokenizer: please report it with the base's "
        "name; rows that you tokenize yourself can be read as `format: tokenized`",
    )
