"""Drafts to examples no longer than allowed: text goes into pieces, the rest as the recipe says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from peftkit.data.draft import UnusableError
from peftkit.data.example import Example

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.data.draft import Draft, Encoder
    from peftkit.data.rows import Intake, Row


@dataclass(frozen=True, slots=True)
class Origin:
    """The source a row came from, and the format it was read as."""

    source: str
    format: str


def within_length(
    draft: Draft, row: Row, origin: Origin, encoder: Encoder, intake: Intake
) -> Iterator[Example]:
    """The examples that a row becomes: none if it is too long to be kept, several if it is cut up.

    Raises:
        UnusableError: the row cannot be used, or may not be cut.
    """
    if encoder.task == "masked-lm":
        yield from _wrapped_pieces(draft, row, origin, encoder)
        return
    over = len(draft.ids) - encoder.max_length if encoder.task == "causal-lm" else draft.over
    if over > 0 and draft.plain:
        yield from _pieces(draft, row, origin, encoder)
        return
    if over > 0 and (encoder.too_long != "truncate" or encoder.task != "causal-lm"):
        _refuse_length(encoder.max_length + over, row, encoder, intake)
        return
    yield _cut(draft, row, origin, encoder, max(over, 0))


def _cut(draft: Draft, row: Row, origin: Origin, encoder: Encoder, over: int) -> Example:
    """The draft without its last `over` tokens; rows of other tasks were cut as they were read."""
    size = len(draft.ids) - over
    tokens = np.asarray(draft.ids, np.int32)[:size]
    trained = np.asarray(draft.trained, np.bool_)[:size]
    if not trained.any():
        raise UnusableError(f"no token carries loss{' after cutting' if over else ''}")
    whole = [end for _, end in draft.answers if end <= size]
    answered = draft.prompt_tokens < size  # else the cut took the answer off
    parts, roles = _left_of(draft, size) if over and draft.roles else (draft.parts, draft.roles)
    return Example(
        tokens=tokens,
        trained=trained,
        where=row.where,
        digest=row.digest,
        text=draft.text,
        prompt_tokens=draft.prompt_tokens if answered else 0,
        prompt=draft.prompt,
        answer=draft.answer if answered else None,
        source=origin.source,
        format=origin.format,
        cut=over + draft.cut,
        parts=parts,
        labels=draft.labels,
        roles=roles,
        stops=sum(int(tokens[end - 1]) in encoder.stops for end in whole),
        cut_answers=len(draft.answers) - len(whole),
        typed=draft.typed,
    )


def _left_of(draft: Draft, size: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The turns of which something is left, and how many tokens."""
    ends = accumulate(draft.parts, initial=0)
    left = [min(end, size) - min(start, size) for start, end in pairwise(ends)]
    pairs = [(tokens, role) for tokens, role in zip(left, draft.roles, strict=True) if tokens]
    return tuple(tokens for tokens, _ in pairs), tuple(role for _, role in pairs)


def _refuse_length(tokens: int, row: Row, encoder: Encoder, intake: Intake) -> None:
    length = f"{tokens} tokens, longer than `data.max_length: {encoder.max_length}`"
    if encoder.too_long == "error":
        raise UnusableError(f"{length}; `data.too_long` may say `drop` or `truncate` instead")
    intake.drop(row.where, length)


def _wrapped_pieces(draft: Draft, row: Row, origin: Origin, encoder: Encoder) -> Iterator[Example]:
    """A passage in pieces, each between the tokens with which the tokenizer frames a text."""
    ids = list(draft.ids)
    if not ids:
        raise UnusableError("column `text` has no token")
    framed = encoder.encode(draft.text, special=True)
    extra = len(framed) - len(ids)
    opening = next((at for at in range(extra + 1) if _holds(framed, ids, at)), None)
    if opening is None:
        raise UnusableError("the tokenizer writes the text otherwise between its special tokens")
    before, after = framed[:opening], framed[opening + len(ids) :]
    size = encoder.max_length - extra
    if size < 2:
        raise UnusableError(f"no text fits into `data.max_length: {encoder.max_length}`")
    file, _, line = row.where.rpartition(":")
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        text = encoder.tokenizer.decode(piece, skip_special_tokens=True)
        whole = len(piece) == len(ids)
        trained = [False] * len(before) + [True] * len(piece) + [False] * len(after)
        yield Example(
            tokens=np.asarray(before + piece + after, np.int32),
            trained=np.asarray(trained, np.bool_),
            where=row.where if whole else f"{file}:{line}+{start}",
            digest=row.digest if whole else hashlib.sha256(text.encode()).hexdigest(),
            text=draft.text if whole else text,
            source=origin.source,
            format=origin.format,
            typed=0 if start else draft.typed,
        )


def _holds(whole: list[int], part: list[int], at: int) -> bool:
    return whole[at : at + len(part)] == part


def _pieces(draft: Draft, row: Row, origin: Origin, encoder: Encoder) -> Iterator[Example]:
    """A long passage as consecutive pieces; each token is in exactly one of them."""
    file, _, line = row.where.rpartition(":")
    ids, size = list(draft.ids), encoder.max_length
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
            typed=0 if start else draft.typed,
        )
