"""Rows to examples: which text is shown, which tokens are learnt, where the model must stop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.chat import ChatError, encode_chat
from peftkit.data.columns import keep_columns
from peftkit.data.draft import Draft, Encoder, UnusableError, words
from peftkit.data.example import Example
from peftkit.data.labelled import (
    read_alike,
    read_asked_and_answered,
    read_classified,
    read_source_and_target,
    read_tagged,
)
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from peftkit.data.rows import Intake, Row

COLUMNS = {
    "chat": ("messages",),
    "instruction": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "classification": ("text", "label"),
    "tokens": ("tokens", "tags"),
    "similar": ("anchor", "positive"),
    "text": ("text",),
}
"""Columns each format needs, most telling first; `auto` takes the first that all are there."""
PLAIN_INSTRUCTION = "### Instruction:\n{0}\n\n### Response:\n"
"""How an instruction is put to a base that has no chat template."""


def build_examples(
    rows: Iterable[Row], given: str, source: str, encoder: Encoder, intake: Intake
) -> Iterator[Example]:
    """Examples of one source, in row order; rows that cannot be used go to `intake`."""
    readers = READERS[encoder.task]
    if given != "auto" and given not in readers:
        raise InputError(
            f"data: format `{given}` is not for `base.task: {encoder.task}`",
            hint=f"formats that are: {', '.join(readers)}",
        )
    fitting = 0
    for row in rows:
        kind = detect_format(row, encoder.task) if given == "auto" else given
        if kind is None and not fitting:  # the first row already: the source is wrong, not the row
            raise _no_format(row, source, readers)
        why = _misfit(row, kind)
        if kind is None or why:
            intake.refuse(row.where, why)
            continue
        fitting += 1
        try:
            draft = readers[kind](row, encoder)
            columns = keep_columns(row, encoder.columns, first=fitting == 1)
            for example in _within_length(draft, row, Origin(source, kind), encoder, intake):
                yield replace(example, columns=columns) if columns else example
        except (UnusableError, ChatError) as problem:
            intake.refuse(row.where, str(problem))


def detect_format(row: Row, task: str = "causal-lm") -> str | None:
    """The first of a task's formats whose columns the row has, if there is one."""
    kinds = (
        kind
        for kind, names in COLUMNS.items()
        if kind in READERS[task] and all(name in row.values for name in names)
    )
    return next(kinds, None)


def _misfit(row: Row, kind: str | None) -> str:
    """Why the row cannot be read as `kind`; empty where it can."""
    has = ", ".join(f"`{name}`" for name in row.values) or "no columns"
    if kind is None:
        return f"no format fits; the row has {has}"
    missing = next((name for name in COLUMNS[kind] if name not in row.values), None)
    return f"format `{kind}` needs column `{missing}`; the row has {has}" if missing else ""


def _no_format(row: Row, source: str, readers: Iterable[str]) -> InputError:
    wanted = "; ".join(f"{kind}: {', '.join(COLUMNS[kind])}" for kind in readers)
    first = COLUMNS[next(iter(readers))][0] if "completion" not in readers else "prompt"
    return InputError(
        f"{row.where}: {_misfit(row, None)}",
        problems=[f"expected {wanted}"],
        hint=f"`columns: {{{first}: {next(iter(row.values), 'question')}}}` under `{source}` "
        "renames a column",
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """The source a row came from, and the format it was read as."""

    source: str
    format: str


def _from_text(row: Row, encoder: Encoder) -> Draft:
    text = words(row, "text")
    ids = encoder.encode(text, special=True)
    end = encoder.tokenizer.eos_token_id
    if end is not None and ids[-1:] != [end]:
        ids = [*ids, end]
    return Draft(ids, [False, *[True] * (len(ids) - 1)], text, plain=True)


def _from_completion(row: Row, encoder: Encoder) -> Draft:
    prompt = words(row, "prompt", may_be_empty=True)
    return _prompted(prompt, prompt, words(row, "completion"), encoder)


def _from_instruction(row: Row, encoder: Encoder) -> Draft:
    asked = words(row, "instruction")
    if given := words(row, "input", may_be_empty=True).strip():
        asked = f"{asked}\n\n{given}"
    answer = words(row, "output")
    if encoder.tokenizer.chat_template is None:
        return _prompted(PLAIN_INSTRUCTION.format(asked), asked, answer, encoder)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return _from_turns(turns, encoder)


def _from_chat(row: Row, encoder: Encoder) -> Draft:
    turns = row.values["messages"]
    if not isinstance(turns, list | tuple) or not turns:
        raise UnusableError(f"column `messages`: expected a list of turns, got `{str(turns)[:40]}`")
    return _from_turns(list(turns), encoder)


def _from_turns(turns: list[Any], encoder: Encoder) -> Draft:
    chat = encode_chat(turns, encoder.tokenizer, encoder.stops)
    last = turns[-1]["role"] == "assistant"
    shown = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    asked = turns[:-1] if last else turns
    return Draft(
        chat.ids,
        chat.trained,
        shown,
        prompt_tokens=chat.last_prompt if last else 0,
        prompt="\n".join(str(turn["content"]) for turn in asked),
        answer=str(turns[-1]["content"]) if last else None,
    )


def _prompted(prompt: str, shown: str, answer: str, encoder: Encoder) -> Draft:
    before = encoder.encode(prompt, special=True)
    end = encoder.tokenizer.eos_token_id
    if before[-1:] == [end] and len(before) > 1:  # the tokenizer closed a text that goes on
        before = before[:-1]
    after = encoder.encode(answer) + ([] if end is None else [end])
    trained = [False] * len(before) + [True] * len(after)
    trained[0] = False
    return Draft(before + after, trained, f"{shown}\n{answer}", len(before), shown, answer.strip())


def _from_passage(row: Row, encoder: Encoder) -> Draft:
    """Text of which tokens will be hidden, without what the tokenizer adds to each piece."""
    text = words(row, "text")
    ids = encoder.encode(text)
    return Draft(ids, [True] * len(ids), text, plain=True)


Reader = Callable[["Row", Encoder], Draft]
ANSWERED: dict[str, Reader] = {
    "completion": read_source_and_target,
    "instruction": read_asked_and_answered,
}
CLASSIFIED: dict[str, Reader] = {"classification": read_classified}
READERS: dict[str, dict[str, Reader]] = {
    "causal-lm": {
        "chat": _from_chat,
        "instruction": _from_instruction,
        "completion": _from_completion,
        "text": _from_text,
    },
    "masked-lm": {"text": _from_passage},
    "seq2seq": ANSWERED,
    "classification": CLASSIFIED,
    "multi-label": CLASSIFIED,
    "regression": CLASSIFIED,
    "token-classification": {"tokens": read_tagged},
    "embedding": {"similar": read_alike},
}
"""What each task reads, by the name of the format."""


def _within_length(
    draft: Draft, row: Row, origin: Origin, encoder: Encoder, intake: Intake
) -> Iterator[Example]:
    """The draft as examples no longer than allowed; text is cut into pieces, the rest by policy."""
    if encoder.task == "masked-lm":
        yield from _wrapped_pieces(draft, row, origin, encoder)
        return
    if encoder.task != "causal-lm":
        yield from _as_read(draft, row, origin, encoder, intake)
        return
    over = len(draft.ids) - encoder.max_length
    if over > 0 and draft.plain:
        yield from _pieces(draft, row, origin, encoder)
        return
    if over > 0 and encoder.too_long != "truncate":
        _refuse_length(len(draft.ids), row, encoder, intake)
        return
    if not any(draft.trained[: encoder.max_length]):
        raise UnusableError(f"no token carries loss{' after cutting' if over > 0 else ''}")
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


def _refuse_length(tokens: int, row: Row, encoder: Encoder, intake: Intake) -> None:
    length = f"{tokens} tokens, longer than `data.max_length: {encoder.max_length}`"
    if encoder.too_long == "error":
        raise UnusableError(f"{length}; `data.too_long` may say `drop` or `truncate` instead")
    intake.drop(row.where, length)


def _as_read(
    draft: Draft, row: Row, origin: Origin, encoder: Encoder, intake: Intake
) -> Iterator[Example]:
    """A draft that was cut as its task needs it, or is too long."""
    if draft.over:
        _refuse_length(encoder.max_length + draft.over, row, encoder, intake)
        return
    if not any(draft.trained):
        raise UnusableError("no token carries loss")
    yield Example(
        tokens=np.asarray(draft.ids, np.int32),
        trained=np.asarray(draft.trained, np.bool_),
        where=row.where,
        digest=row.digest,
        text=draft.text,
        prompt_tokens=draft.prompt_tokens,
        prompt=draft.prompt,
        answer=draft.answer,
        source=origin.source,
        format=origin.format,
        cut=draft.cut,
        parts=draft.parts,
        labels=draft.labels,
    )


def _wrapped_pieces(draft: Draft, row: Row, origin: Origin, encoder: Encoder) -> Iterator[Example]:
    """A passage in pieces, each between the tokens with which the tokenizer frames a text."""
    if not draft.ids:
        raise UnusableError("column `text` has no token")
    framed = encoder.encode(draft.text, special=True)
    extra = len(framed) - len(draft.ids)
    opening = next((at for at in range(extra + 1) if _holds(framed, draft.ids, at)), None)
    if opening is None:
        raise UnusableError("the tokenizer writes the text otherwise between its special tokens")
    before, after = framed[:opening], framed[opening + len(draft.ids) :]
    size = encoder.max_length - extra
    if size < 2:
        raise UnusableError(f"no text fits into `data.max_length: {encoder.max_length}`")
    file, _, line = row.where.rpartition(":")
    for start in range(0, len(draft.ids), size):
        piece = draft.ids[start : start + size]
        text = encoder.tokenizer.decode(piece, skip_special_tokens=True)
        whole = len(piece) == len(draft.ids)
        trained = [False] * len(before) + [True] * len(piece) + [False] * len(after)
        yield Example(
            tokens=np.asarray(before + piece + after, np.int32),
            trained=np.asarray(trained, np.bool_),
            where=row.where if whole else f"{file}:{line}+{start}",
            digest=row.digest if whole else hashlib.sha256(text.encode()).hexdigest(),
            text=draft.text if whole else text,
            source=origin.source,
            format=origin.format,
        )


def _holds(whole: list[int], part: list[int], at: int) -> bool:
    return whole[at : at + len(part)] == part


def _pieces(draft: Draft, row: Row, origin: Origin, encoder: Encoder) -> Iterator[Example]:
    """A long passage as consecutive pieces; each token is in exactly one of them."""
    file, _, line = row.where.rpartition(":")
    ids, size = draft.ids, encoder.max_length
    if size < 3:
        raise UnusableError(f"cannot be cut into pieces of `data.max_length: {size}`")
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
