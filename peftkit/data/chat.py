"""Chats to tokens with the tokenizer's own template; answers are learned, up to their stop.

A chat is rendered once whole, and once up to each learned turn, which is quick; the whole is
tokenized once, together with other rows, and a turn is found in it by its characters. A token
that begins before a turn and ends in it is the template's, so it carries no loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2.exceptions import TemplateError

from peftkit.data.control import MARKED, MARKS, OPEN, texts_of
from peftkit.data.draft import Ask, Draft, Encoder, Steps, refuse_typed
from peftkit.data.turns import SPEAKS, ChatError, Turn, choose_learned, said
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """A turn in a rendered chat, in characters from where its text begins."""

    number: int
    start: int
    end: int
    learned: bool
    content_end: int = -1
    """Where the text of a turn ends that is not the assistant's."""
    whole: bool = True
    """Whether `end` is the turn's own; false where the template writes it anew as turns follow."""


@dataclass(frozen=True, slots=True)
class Talk:
    """A rendered chat."""

    turns: Sequence[Turn]
    text: str
    spans: tuple[Span, ...]
    sections: tuple[tuple[str, int], ...]
    """Whose turn it is, and the character that it ends before."""
    typed: int = 0

    @property
    def answered(self) -> bool:
        """Whether the assistant has the last word."""
        return bool(self.turns[-1]["role"] == SPEAKS)


def read_talk(turns: Sequence[Turn], tools: list[Any] | None, encoder: Encoder) -> Steps:
    """The steps from turns to a draft."""
    if encoder.tokenizer.chat_template is None:
        raise InputError(
            "the base has no chat template, so `chat` rows cannot be rendered",
            hint="use its instruction-tuned sibling, or format `completion`",
        )
    talk = lay_out(turns, tools, encoder)
    if talk.typed:
        ids, where = _encode_in_pieces(talk, encoder)
        return _draft(talk, ids, where, encoder)
    (found,) = yield (Ask(talk.text, templated=True),)
    if found.places is None:  # the tokenizer does not say where each character went
        ids, where = _encode_in_pieces(talk, encoder)
        return _draft(talk, ids, where, encoder, unsure=True)
    where = partial(found.first_token, end=len(talk.text))
    return _draft(talk, found.ids, where, encoder)


def render(turns: Sequence[Turn], tools: Any, tokenizer: Any, *, ask: bool = False) -> str:
    """What the template makes of some turns, and of a request for an answer if one is asked for.

    Raises:
        ChatError: the template refuses them.
    """
    if not turns:
        return ""
    try:
        text = tokenizer.apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=ask
        )
    except (TemplateError, TypeError) as problem:
        raise ChatError(f"the chat template refuses it: {problem}") from None
    return str(text)


def lay_out(turns: Sequence[Turn], tools: list[Any] | None, encoder: Encoder) -> Talk:
    """A rendered chat, with the turns that are learned and the last answer found in it."""
    typed = encoder.typed([turns, tools])
    shown = [{name: turn[name] for name in turn if name != "train"} for turn in turns]
    if typed:
        refuse_marks([shown, tools])
        shown, tools = encoder.control.mark(shown), encoder.control.mark(tools)
    draw = partial(render, tools=tools, tokenizer=encoder.tokenizer)
    text = draw(shown)
    learned = choose_learned(turns, encoder.learn)
    last = len(turns) - 1
    wanted = {*learned, last} if turns[last]["role"] == SPEAKS else {*learned}
    spans = []
    ends = {last: len(text)}
    for number in sorted(wanted):
        find = _find_answer if turns[number]["role"] == SPEAKS else _find_other
        before, span = find(shown, number, text, draw, learned=number in learned)
        spans.append(span)
        if span.whole:
            ends[number] = span.end
        ends.setdefault(number - 1, len(before.removesuffix(encoder.control.header)))
    return Talk(turns, text, tuple(spans), _sections(shown, text, ends, draw), typed)


def refuse_marks(values: Any) -> None:
    """Refuse a chat that holds the very characters that are to stand around its control tokens."""
    if any(MARKS.search(text) for text in texts_of(values)):
        raise ChatError("spells out a control token, and holds U+FDD0 or U+FDD1 beside it")


def _find_answer(
    turns: list[Turn], number: int, text: str, draw: Callable[..., str], *, learned: bool
) -> tuple[str, Span]:
    """An answer goes from what asks for it to where the next turn begins."""
    before = draw(turns[:number], ask=True)
    after = text if number == len(turns) - 1 else draw(turns[: number + 1])
    if not text.startswith(before):
        raise _rewritten(number)
    whole = text.startswith(after)
    return before, Span(number, len(before), len(after if whole else text), learned, whole=whole)


def _find_other(
    turns: list[Turn], number: int, text: str, draw: Callable[..., str], *, learned: bool
) -> tuple[str, Span]:
    """Of another turn, what it says is learned, and not how the template introduces it."""
    before, after = draw(turns[:number]), draw(turns[: number + 1])
    if not text.startswith(before) or not text.startswith(after):
        raise _rewritten(number)
    content = (turns[number].get("content") or "").strip()
    # What it says may stand in how it is introduced too, so a copy is rendered with a mark before.
    copy = turns[number] | {"content": f"{OPEN}{content}"}
    start = draw([*turns[:number], copy]).find(OPEN, len(before))
    start += len(text[start:]) - len(text[start:].lstrip())
    if not content or not text.startswith(content, start) or start < len(before):
        raise ChatError(
            f"turn {number + 1}: the chat template does not write it as it stands, so it cannot be "
            "learned"
        )
    return before, Span(number, start, len(after), learned, start + len(content))


def _rewritten(number: int) -> ChatError:
    return ChatError(
        f"turn {number + 1}: the chat template renders it differently when turns follow; "
        "`learn: {turns: last}` of the source learns the last one alone"
    )


def _sections(
    turns: list[Turn], text: str, ends: dict[int, int], draw: Callable[..., str]
) -> tuple[tuple[str, int], ...]:
    """Where each turn ends; one of which that cannot be told goes with the next."""
    found: list[tuple[str, int]] = []
    for number, turn in enumerate(turns):
        end = ends.get(number)
        if end is None:
            end = _length_up_to(turns[: number + 1], text, draw)
        if end > (found[-1][1] if found else 0):
            found.append((turn["role"], end))
    return tuple(found)


def _length_up_to(turns: list[Turn], text: str, draw: Callable[..., str]) -> int:
    try:
        part = draw(turns)
    except ChatError:  # some templates refuse a chat that ends there
        return 0
    return len(part) if text.startswith(part) else 0


def _draft(
    talk: Talk,
    ids: Sequence[int],
    where: Callable[[int], int],
    encoder: Encoder,
    *,
    unsure: bool = False,
) -> Draft:
    trained = np.zeros(len(ids), np.bool_)
    answers = []
    prompt_tokens = 0
    for span in talk.spans:
        start = where(span.start)
        if talk.turns[span.number]["role"] != SPEAKS:
            trained[start : _end_of_other(span, ids, where, encoder)] = True
            continue
        if span.number == len(talk.turns) - 1:
            prompt_tokens = start
        if span.learned:
            end = _end_of_answer(talk, span, ids, where, encoder)
            trained[start:end] = True
            answers.append((start, end))
    trained[:1] = False
    ends = [where(end) for _, end in talk.sections]
    asked, last = (talk.turns[:-1], talk.turns[-1]) if talk.answered else (talk.turns, None)
    return Draft(
        ids,
        trained,
        "\n".join(f"{turn['role']}: {said(turn)}" for turn in talk.turns),
        prompt_tokens=prompt_tokens,
        prompt="\n".join(map(said, asked)),
        answer=_answer(last, talk) if last else None,
        parts=tuple(np.diff([0, *ends]).tolist()),
        roles=tuple(role for role, _ in talk.sections),
        answers=tuple(answers),
        typed=talk.typed,
        unsure=unsure or not all(span.whole for span in talk.spans),
    )


def _answer(turn: Turn, talk: Talk) -> str:
    """What a generation is compared with: the content, or the calls as the template writes them."""
    return str(turn.get("content") or talk.text[talk.spans[-1].start : talk.spans[-1].end])


def _end_of_answer(
    talk: Talk, span: Span, ids: Sequence[int], where: Callable[[int], int], encoder: Encoder
) -> int:
    """The place after the stop token of a turn; what the template adds to it is not learned."""
    start, end = where(span.start), where(span.end)
    stops = [place for place in range(start, end) if ids[place] in encoder.stops]
    if span.whole:
        if not stops:
            raise no_stop(ids[start:end], encoder)
        return stops[-1] + 1
    # Qwen3 puts an empty thought before the last answer only, which is no harm if what would be
    # learned is what the row says.
    stop = stops[0] if stops else start
    written = encoder.tokenizer.decode(ids[start:stop]).strip()
    if written != (talk.turns[span.number].get("content") or "").strip():
        raise _rewritten(span.number)
    return stop + 1


def _end_of_other(
    span: Span, ids: Sequence[int], where: Callable[[int], int], encoder: Encoder
) -> int:
    """The place after the stop token of a turn if it has one, or else after its text."""
    end = where(span.content_end)
    stop = next((p for p in range(end, where(span.end)) if ids[p] in encoder.stops), None)
    return end if stop is None else stop + 1


def no_stop(ids: Sequence[int], encoder: Encoder) -> InputError:
    """What to say of a turn that ends without a stop token, and the setting that mends it."""
    ends = next((token for token in ids if token in encoder.control.ids), None)
    hint = "set `eos_token` in the tokenizer's config to the token that ends a turn"
    if ends is not None:
        name = encoder.tokenizer.convert_ids_to_tokens(ends)
        hint = f"`--set 'base.stop_tokens=[\"{name}\"]'`: the template ends a turn with `{name}`"
    return InputError(
        "the chat template ends an assistant turn without a stop token, so the model would never "
        "learn to stop",
        hint=hint,
    )


def _encode_in_pieces(talk: Talk, encoder: Encoder) -> tuple[list[int], Callable[[int], int]]:
    """Ids of a chat in which texts spell out control tokens, and the token at each place asked for.

    The text is cut inside each of those, and wherever a turn begins or ends.
    """
    marked = talk.text
    places = {0, len(marked), *(end for _, end in talk.sections)}
    for span in talk.spans:
        places |= {span.start, span.end, max(0, span.content_end)}
    inside = {found.start() + 2 for found in MARKED.finditer(marked)}
    cuts = sorted(places | inside)
    ids: list[int] = []
    tokens = {0: 0}
    for start, end in pairwise(cuts):
        ids += _encode_piece(MARKS.sub("", marked[start:end]), encoder.tokenizer)
        tokens[end] = len(ids)
    own = len(encoder.control.pattern.findall(MARKED.sub(OPEN, marked)))
    if sum(token in encoder.control.ids for token in ids) != own:
        raise ChatError(refuse_typed(encoder.control.pattern.findall(said_in(talk))[0]))
    return ids, tokens.__getitem__


def said_in(talk: Talk) -> str:
    """All that the turns of a chat say."""
    return "\n".join(map(said, talk.turns))


def _encode_piece(text: str, tokenizer: Any) -> list[int]:
    """Ids of a piece of text as they are after others.

    Some tokenizers put a space before a text, so a line end is put before it and taken off again.
    """
    line: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    ids: list[int] = tokenizer(f"\n{text}", add_special_tokens=False, verbose=False)["input_ids"]
    if ids[: len(line)] == line:
        return ids[len(line) :]
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
