"""Rows to examples: which text is shown, which tokens are learnt, where the model must stop."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.chat import ChatError, encode_chat
from peftkit.data.example import LONE_SURROGATE, Example
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from peftkit.data.rows import Intake, Row

COLUMNS = {
    "chat": ("messages",),
    "instruction": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Columns each format needs, most telling first; `auto` takes the first that all are there."""
PLAIN_INSTRUCTION = "### Instruction:\n{0}\n\n### Response:\n"
"""How an instruction is put to a base that has no chat template."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A tokenizer, the ids that end an answer, and the length policy."""

    tokenizer: Any
    stops: frozenset[int]
    max_length: int
    too_long: str

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, with the tokenizer's own additions only if asked for."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        return ids


def build_examples(
    rows: Iterable[Row], given: str, source: str, encoder: Encoder, intake: Intake
) -> Iterator[Example]:
    """Examples of one source, in row order; rows that cannot be used go to `intake`."""
    fitting = 0
    for row in rows:
        kind = detect_format(row) if given == "auto" else given
        if kind is None and not fitting:  # the first row already: the source is wrong, not the row
            raise _no_format(row, source)
        why = _misfit(row, kind)
        if kind is None or why:
            intake.refuse(row.where, why)
            continue
        fitting += 1
        try:
            draft = FORMATS[kind](row, encoder)
            yield from _within_length(draft, row, Origin(source, kind), encoder, intake)
        except (_UnusableError, ChatError) as problem:
            intake.refuse(row.where, str(problem))


def detect_format(row: Row) -> str | None:
    """The first format whose columns the row has, if there is one."""
    kinds = (kind for kind, names in COLUMNS.items() if all(name in row.values for name in names))
    return next(kinds, None)


def _misfit(row: Row, kind: str | None) -> str:
    """Why the row cannot be read as `kind`; empty where it can."""
    has = ", ".join(f"`{name}`" for name in row.values) or "no columns"
    if kind is None:
        return f"no format fits; the row has {has}"
    missing = next((name for name in COLUMNS[kind] if name not in row.values), None)
    return f"format `{kind}` needs column `{missing}`; the row has {has}" if missing else ""


def _no_format(row: Row, source: str) -> InputError:
    wanted = "; ".join(f"{kind}: {', '.join(columns)}" for kind, columns in COLUMNS.items())
    return InputError(
        f"{row.where}: {_misfit(row, None)}",
        problems=[f"expected {wanted}"],
        hint=f"`columns: {{prompt: {next(iter(row.values), 'question')}}}` under `{source}` "
        "renames a column",
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """The source a row came from, and the format it was read as."""

    source: str
    format: str


class _UnusableError(ValueError):
    """A row that has the columns but not the content."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """Tokens of one row before the length policy."""

    ids: list[int]
    trained: list[bool]
    text: str
    prompt_tokens: int = 0
    prompt: str = ""
    answer: str | None = None
    plain: bool = False


def _words(row: Row, column: str, *, may_be_empty: bool = False) -> str:
    value = row.values.get(column, "")
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise _UnusableError(f"column `{column}`: expected text, got `{str(value)[:40]}`")
    if not value.strip() and not may_be_empty:
        raise _UnusableError(f"column `{column}` is empty")
    if half := LONE_SURROGATE.search(value):
        raise _UnusableError(f"column `{column}` holds half a character (U+{ord(half[0]):04X})")
    return value


def _from_text(row: Row, encoder: Encoder) -> _Draft:
    text = _words(row, "text")
    ids = encoder.encode(text, special=True)
    end = encoder.tokenizer.eos_token_id
    if end is not None and ids[-1:] != [end]:
        ids = [*ids, end]
    return _Draft(ids, [False, *[True] * (len(ids) - 1)], text, plain=True)


def _from_completion(row: Row, encoder: Encoder) -> _Draft:
    prompt = _words(row, "prompt", may_be_empty=True)
    return _prompted(prompt, prompt, _words(row, "completion"), encoder)


def _from_instruction(row: Row, encoder: Encoder) -> _Draft:
    asked = _words(row, "instruction")
    if given := _words(row, "input", may_be_empty=True).strip():
        asked = f"{asked}\n\n{given}"
    answer = _words(row, "output")
    if encoder.tokenizer.chat_template is None:
        return _prompted(PLAIN_INSTRUCTION.format(asked), asked, answer, encoder)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return _from_turns(turns, encoder)


def _from_chat(row: Row, encoder: Encoder) -> _Draft:
    turns = row.values["messages"]
    if not isinstance(turns, list | tuple) or not turns:
        raise _UnusableError(
            f"column `messages`: expected a list of turns, got `{str(turns)[:40]}`"
        )
    return _from_turns(list(turns), encoder)


def _from_turns(turns: list[Any], encoder: Encoder) -> _Draft:
    chat = encode_chat(turns, encoder.tokenizer, encoder.stops)
    last = turns[-1]["role"] == "assistant"
    shown = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    asked = turns[:-1] if last else turns
    return _Draft(
        chat.ids,
        chat.trained,
        shown,
        prompt_tokens=chat.last_prompt if last else 0,
        prompt="\n".join(str(turn["content"]) for turn in asked),
        answer=str(turns[-1]["content"]) if last else None,
    )


def _prompted(prompt: str, shown: str, answer: str, encoder: Encoder) -> _Draft:
    before = encoder.encode(prompt, special=True)
    end = encoder.tokenizer.eos_token_id
    if before[-1:] == [end] and len(before) > 1:  # the tokenizer closed a text that goes on
        before = before[:-1]
    after = encoder.encode(answer) + ([] if end is None else [end])
    trained = [False] * len(before) + [True] * len(after)
    trained[0] = False
    return _Draft(before + after, trained, f"{shown}\n{answer}", len(before), shown, answer.strip())


FORMATS = {
    "chat": _from_chat,
    "instruction": _from_instruction,
    "completion": _from_completion,
    "text": _from_text,
}


def _within_length(
    draft: _Draft, row: Row, origin: Origin, encoder: Encoder, intake: Intake
) -> Iterator[Example]:
    """The draft as examples no longer than allowed; text is cut into pieces, the rest by policy."""
    over = len(draft.ids) - encoder.max_length
    if over > 0 and draft.plain:
        yield from _pieces(draft, row, origin, encoder)
        return
    if over > 0 and encoder.too_long != "truncate":
        length = f"{len(draft.ids)} tokens, longer than `data.max_length: {encoder.max_length}`"
        if encoder.too_long == "error":
            raise _UnusableError(f"{length}; `data.too_long` may say `drop` or `truncate` instead")
        intake.drop(row.where, length)
        return
    if not any(draft.trained[: encoder.max_length]):
        raise _UnusableError(f"no token carries loss{' after cutting' if over > 0 else ''}")
    answered = draft.prompt_tokens < encoder.max_length  # else the cut took the answer off
    yield Example(
        tokens=np.asarray(draft.ids[: encoder.max_length], np.int32),
        trained=np.asarray(draft.trained[: encoder.max_length], np.bool_),
        where=row.where,
        digest=row.digest,
        text=draft.text,
        prompt_tokens=draft.prompt_tokens if answered else 0,
        prompt=draft.prompt,
        answer=draft.answer if answered else None,
        source=origin.source,
        format=origin.format,
        cut=max(over, 0),
    )


def _pieces(draft: _Draft, row: Row, origin: Origin, encoder: Encoder) -> Iterator[Example]:
    """A long passage as consecutive pieces; each token is in exactly one of them."""
    file, _, line = row.where.rpartition(":")
    ids, size = draft.ids, encoder.max_length
    if size < 3:
        raise _UnusableError(f"cannot be cut into pieces of `data.max_length: {size}`")
    starts = [*range(0, len(ids), size), len(ids)]
    if len(ids) - starts[-2] == 1:  # a piece of one token would predict nothing
        starts[-2] -= 1
    for start, end in pairwise(starts):
        piece = ids[start:end]
        text = encoder.tokenizer.decode(piece, skip_special_tokens=True)
        trained = np.ones(len(piece), np.bool_)
        trained[0] = False
        yield Example(
            tokens=np.asarray(piece, np.int32),
            trained=trained,
            where=f"{file}:{line}+{start}",
            digest=hashlib.sha256(text.encode()).hexdigest(),
            text=text,
            source=origin.source,
            format=origin.format,
        )
