"""Rows that somebody has tokenized already, with which tokens are learned if they say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.draft import Draft, UnusableError
from peftkit.data.example import IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peftkit.data.draft import Encoder
    from peftkit.data.rows import Row


def read_ready(row: Row, encoder: Encoder) -> Draft:
    """A row of ids, and `labels` or a `mask` beside them; without either, everything is learned."""
    ids = _numbers(row, "input_ids")
    size = len(encoder.tokenizer)
    strange = np.flatnonzero((ids < 0) | (ids >= size))
    if len(strange):
        raise UnusableError(
            f"column `input_ids`: id {ids[strange[0]]} at place {strange[0]}; the vocabulary of "
            f"the base has {size}"
        )
    trained = _learned(row, ids)
    trained[0] = False  # nothing comes before it
    decode = encoder.tokenizer.decode
    shown = decode(ids, skip_special_tokens=True)
    starts, ends = _runs(trained)
    answered = len(starts) > 0 and ends[-1] == len(ids) and starts[-1] > 1
    prompt = decode(ids[: starts[-1]], skip_special_tokens=True) if answered else ""
    answer = decode(ids[starts[-1] :], skip_special_tokens=True).strip() if answered else None
    return Draft(
        ids.astype(np.int32),
        trained,
        shown,
        prompt_tokens=int(starts[-1]) if answered else 0,
        prompt=prompt,
        answer=answer,
        plain=starts == [1],
        answers=tuple(zip(starts, ends, strict=True)) if starts != [1] else (),
    )


def _learned(row: Row, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens a row says are learned."""
    values = row.values
    if values.get("labels") is None and values.get("mask") is None:
        return np.ones(len(ids), np.bool_)
    column = "mask" if values.get("labels") is None else "labels"
    given = _numbers(row, column)
    if len(given) != len(ids):
        raise UnusableError(f"{len(ids)} in `input_ids`, but {len(given)} in `{column}`")
    if column == "mask":
        if not np.isin(given, (0, 1)).all():
            raise UnusableError("column `mask`: expected 0 or 1 for each token")
        return np.asarray(given == 1, np.bool_)
    learned = given != IGNORED
    other = np.flatnonzero(learned & (given != ids))
    if len(other):
        raise UnusableError(
            f"column `labels`: {given[other[0]]} at place {other[0]}; expected the token's own id, "
            f"or {IGNORED} where nothing is learned"
        )
    return np.asarray(learned, np.bool_)


def _runs(learned: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Where each run of learned tokens begins, and where it ends."""
    turns = np.diff(np.concatenate([[False], learned, [False]]).astype(np.int8))
    return np.flatnonzero(turns == 1).tolist(), np.flatnonzero(turns == -1).tolist()


def _numbers(row: Row, column: str) -> NDArray[np.int64]:
    value: Any = row.values[column]
    fits = isinstance(value, list | tuple) and all(type(each) is int for each in value)
    if not fits or not value or any(abs(each) >= 2**31 for each in value):
        raise UnusableError(f"column `{column}`: expected a list of ids, got `{str(value)[:40]}`")
    return np.array(value, np.int64)
