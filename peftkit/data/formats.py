"""Rows to examples: which text is shown, which tokens are learnt, where the model must stop.

Rows are taken some hundred at a time, so that their texts are tokenized in one call. A reader is a
generator that asks for the tokens of its texts, or a function where one row says all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from peftkit.data.chat import read_talk
from peftkit.data.chat_check import ChatGate
from peftkit.data.columns import keep_columns, refuse_missing
from peftkit.data.draft import Ask, Draft, Encoder, Steps, UnusableError, words
from peftkit.data.labelled import (
    read_alike,
    read_asked_and_answered,
    read_classified,
    read_source_and_target,
    read_tagged,
)
from peftkit.data.length import Origin, within_length
from peftkit.data.ready import read_ready
from peftkit.data.rows import Bad
from peftkit.data.turns import SPEAKS, Turn, tools_of, turns_of
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from peftkit.data.example import Example
    from peftkit.data.rows import Intake, Row

COLUMNS = {
    "chat": ("messages",),
    "instruction": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "classification": ("text", "label"),
    "tokens": ("tokens", "tags"),
    "similar": ("anchor", "positive"),
    "tokenized": ("input_ids",),
    "text": ("text",),
}
"""Columns each format needs, most telling first; `auto` takes the first that all are there."""
PLAIN_INSTRUCTION = "### Instruction:\n{0}\n\n### Response:\n"
"""How an instruction is put to a base that has no chat template."""
ROWS_AT_ONCE = 256
"""Rows whose texts are tokenized together; more are no quicker and take more memory."""


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
    gate = ChatGate(encoder)
    fitting = False
    left = iter(rows)
    while chunk := list(_begin(islice(left, ROWS_AT_ONCE), given, encoder, intake)):
        first = chunk[0]
        if not first.kind and not fitting:  # the first row already: the source is wrong, not it
            raise _no_format(first.row, source, readers)
        _go_on(chunk, encoder)
        if not fitting:
            refuse_missing(first.row, encoder.columns)
        fitting = True
        yield from _finish(chunk, source, gate, intake)


@dataclass(slots=True)
class Pending:
    """A row on its way to a draft, or to a reason why it is none."""

    row: Row
    kind: str
    """The name of its format; empty where none fits."""
    refused: int
    """How many rows of the source were refused before this one was read."""
    steps: Steps | None = None
    asked: tuple[Ask, ...] = ()
    draft: Draft | None = None
    problem: str = ""

    def take(self, step: Callable[[], tuple[Ask, ...]]) -> None:
        """Do the next step, and remember what it asks for, or the draft, or what went wrong."""
        self.asked = ()
        try:
            self.asked = step()
        except StopIteration as done:
            self.draft = done.value
        except UnusableError as problem:
            self.problem = str(problem)


def _begin(rows: Iterable[Row], given: str, encoder: Encoder, intake: Intake) -> Iterator[Pending]:
    """Rows with their readers started."""
    readers = READERS[encoder.task]
    for row in rows:
        kind = detect_format(row, encoder.task) if given == "auto" else given
        pending = Pending(row, kind or "", len(intake.found), problem=_misfit(row, kind))
        if not pending.problem and kind:
            pending.steps = _steps(readers[kind], row, encoder)
            pending.take(pending.steps.__next__)
        yield pending


def _steps(read: Reader, row: Row, encoder: Encoder) -> Steps:
    found = read(row, encoder)
    return (yield from found) if isinstance(found, Generator) else found


def _go_on(chunk: list[Pending], encoder: Encoder) -> None:
    """Tokenize what the readers ask for, until none asks any more."""
    while waiting := [pending for pending in chunk if pending.asked]:
        found = iter(encoder.encode_all([ask for each in waiting for ask in each.asked]))
        for pending in waiting:
            own = [next(found) for _ in pending.asked]
            pending.problem = next((each.problem for each in own if each.problem), "")
            steps = pending.steps
            if pending.problem or steps is None:
                pending.asked = ()
            else:
                pending.take(partial(steps.send, own))


def _finish(chunk: list[Pending], source: str, gate: ChatGate, intake: Intake) -> Iterator[Example]:
    """The examples of some rows; what is refused here is told in row order."""
    later = 0
    for pending in chunk:
        made: list[Example] = []
        if pending.draft is not None:
            origin = Origin(source, pending.kind)
            try:
                _pass_gate(pending, pending.draft, gate)
                columns = keep_columns(pending.row, gate.encoder.columns)
                made = [
                    replace(example, columns=columns) if columns else example
                    for example in within_length(
                        pending.draft, pending.row, origin, gate.encoder, intake
                    )
                ]
            except UnusableError as problem:
                pending.problem = str(problem)
        if pending.problem:
            bad = Bad(pending.row.where, pending.problem)
            intake.found.insert(pending.refused + later, bad)
            later += 1
        yield from made


def _pass_gate(pending: Pending, draft: Draft, gate: ChatGate) -> None:
    if draft.roles and gate.wants(draft):
        row, chat = pending.row, pending.kind == "chat"
        turns, tools = (turns_of(row), tools_of(row)) if chat else (_as_turns(row), None)
        gate.check(draft, turns, tools, row.where)


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
    if kind is not None and all(name in row.values for name in COLUMNS[kind]):
        return ""
    has = ", ".join(f"`{name}`" for name in row.values) or "no columns"
    if kind is None:
        return f"no format fits; the row has {has}"
    missing = next(name for name in COLUMNS[kind] if name not in row.values)
    return f"format `{kind}` needs column `{missing}`; the row has {has}"


def _no_format(row: Row, source: str, readers: Iterable[str]) -> InputError:
    wanted = "; ".join(f"{kind}: {', '.join(COLUMNS[kind])}" for kind in readers)
    first = COLUMNS[next(iter(readers))][0] if "completion" not in readers else "prompt"
    return InputError(
        f"{row.where}: {_misfit(row, None)}",
        problems=[f"expected {wanted}"],
        hint=f"`columns: {{{first}: {next(iter(row.values), 'question')}}}` under `{source}` "
        "renames a column",
    )


def _from_text(row: Row, encoder: Encoder) -> Steps:
    text = words(row, "text")
    (found,) = yield (Ask(text, special=True),)
    ids = found.ids
    end = encoder.end_id
    if end is not None and ids[-1:] != [end]:
        ids.append(end)
    trained = np.ones(len(ids), np.bool_)
    trained[:1] = False
    return Draft(ids, trained, text, plain=True, typed=found.typed)


def _from_completion(row: Row, encoder: Encoder) -> Steps:
    prompt = words(row, "prompt", may_be_empty=True)
    return (yield from _prompted(prompt, prompt, words(row, "completion"), encoder))


def _from_instruction(row: Row, encoder: Encoder) -> Steps:
    turns = _as_turns(row)
    if encoder.tokenizer.chat_template is not None:
        return (yield from read_talk(turns, None, encoder))
    asked, answer = (turn["content"] for turn in turns)
    prompt = PLAIN_INSTRUCTION.format(asked)
    return (yield from _prompted(prompt, asked, answer, encoder))


def _as_turns(row: Row) -> list[Turn]:
    """An instruction as a chat of one question and its answer."""
    asked = words(row, "instruction")
    if given := words(row, "input", may_be_empty=True).strip():
        asked = f"{asked}\n\n{given}"
    answer = words(row, "output")
    return [{"role": "user", "content": asked}, {"role": SPEAKS, "content": answer}]


def _from_chat(row: Row, encoder: Encoder) -> Steps:
    return (yield from read_talk(turns_of(row), tools_of(row), encoder))


def _prompted(prompt: str, shown: str, answer: str, encoder: Encoder) -> Steps:
    before, after = yield (Ask(prompt, special=True), Ask(answer))
    end = encoder.end_id
    given, said = before.ids, after.ids
    if given[-1:] == [end] and len(given) > 1:  # the tokenizer closed a text that goes on
        given = given[:-1]
    ids = [*given, *said] if end is None else [*given, *said, end]
    trained = np.ones(len(ids), np.bool_)
    trained[: max(1, len(given))] = False
    return Draft(
        ids,
        trained,
        f"{shown}\n{answer}",
        prompt_tokens=len(given),
        prompt=shown,
        answer=answer.strip(),
        answers=((len(given), len(ids)),),
        typed=before.typed + after.typed,
    )


def _from_passage(row: Row, _: Encoder) -> Steps:
    """Text of which tokens will be hidden, without what the tokenizer adds to each piece."""
    text = words(row, "text")
    (found,) = yield (Ask(text),)
    return Draft(found.ids, [True] * len(found.ids), text, plain=True, typed=found.typed)


Reader = Callable[["Row", Encoder], Steps | Draft]
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
        "tokenized": read_ready,
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
