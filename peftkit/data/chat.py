"""Chats to tokens with the tokenizer's own template; assistant turns are learnt, up to the stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from peftkit.data.example import LONE_SURROGATE
from peftkit.errors import InputError


class ChatError(ValueError):
    """A conversation that cannot be put into the template."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A rendered conversation; `last_prompt` tokens come before the last assistant turn."""

    ids: list[int]
    trained: list[bool]
    last_prompt: int


def encode_chat(turns: list[Any], tokenizer: Any, stops: frozenset[int]) -> Chat:
    """The conversation as `apply_chat_template` renders it, assistant turns marked as learnt."""
    if tokenizer.chat_template is None:
        raise InputError(
            "the base has no chat template, so `chat` rows cannot be rendered",
            hint="use its instruction-tuned sibling, or format `completion`",
        )
    _check_turns(turns)
    full = _render(turns, tokenizer, ask=False)
    trained = [False] * len(full)
    last_prompt = 0
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _render(turns[:number], tokenizer, ask=True)
        after = _render(turns[: number + 1], tokenizer, ask=False)
        alike = full[: len(after)] == after and after[: len(before)] == before
        stop = (
            _stop(full, len(before), len(after), stops)
            if alike
            else _stop_when_rewritten(full, before, turn["content"], tokenizer, stops)
        )
        if stop is None:
            raise ChatError(
                f"turn {number + 1}: the chat template renders it differently when turns follow"
            )
        trained[len(before) : stop + 1] = [True] * (stop + 1 - len(before))
        last_prompt = len(before)
    trained[:1] = [False]
    return Chat(full, trained, last_prompt)


def _check_turns(turns: list[Any]) -> None:
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise ChatError(f"turn {number}: expected `role` and `content`, got `{str(turn)[:40]}`")
        if not isinstance(turn["role"], str):
            raise ChatError(f"turn {number}: expected a role, got `{str(turn['role'])[:40]}`")
        if not isinstance(turn["content"], str):
            raise ChatError(f"turn {number}: expected text, got `{str(turn['content'])[:40]}`")
        if LONE_SURROGATE.search(turn["content"]):
            raise ChatError(f"turn {number}: holds half a character")
        if turn["role"] == "assistant" and not turn["content"].strip():
            raise ChatError(f"turn {number}: the assistant says nothing")
        if turn["role"] == "assistant" and number == 1:
            raise ChatError("turn 1: the assistant speaks before anything is asked")


def _render(turns: list[Any], tokenizer: Any, *, ask: bool) -> list[int]:
    try:
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=ask, return_dict=True)
    except TemplateError as problem:
        raise ChatError(f"the chat template refuses it: {problem}") from None
    ids: list[int] = encoded["input_ids"]
    return ids


def _stop_when_rewritten(
    full: list[int], before: list[int], said: str, tokenizer: Any, stops: frozenset[int]
) -> int | None:
    """Where a turn ends that the template writes otherwise when it is the last.

    Qwen3 puts an empty thought before the last answer only, which is no harm; None where what
    would be learnt is not what the row says.
    """
    start = len(before)
    stop = next((at for at in range(start, len(full)) if full[at] in stops), start)
    same = tokenizer.decode(full[start:stop]).strip() == said.strip()
    return stop if same and full[:start] == before else None


def _stop(full: list[int], start: int, end: int, stops: frozenset[int]) -> int:
    """Where the turn's stop token stands; what the template adds after it is not learnt."""
    for position in range(end - 1, start - 1, -1):
        if full[position] in stops:
            return position
    raise InputError(
        "the chat template ends an assistant turn without a stop token, so the model would never "
        "learn to stop",
        hint="set `eos_token` in the tokenizer's config to the token that ends a turn",
    )
