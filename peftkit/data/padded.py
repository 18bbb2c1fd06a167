"""Documents a row each, padded and masked, with the goals of every task but writing on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from peftkit.data.example import IGNORED
from peftkit.data.task import hide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from peftkit.data.example import Example
    from peftkit.data.task import Task


def pad_rows(
    documents: Sequence[Example], task: Task, pad_id: int, draws: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The fields of a batch of these documents.

    Args:
        documents: one a row.
        task: what is asked of each.
        pad_id: stands after the tokens, where the mask is 0.
        draws: for each document the numbers that decide which of its tokens are hidden.
    """
    fields = GOALS[task.name](documents, task, draws)
    texts: list[NDArray[Any]] = fields.pop("texts")
    inputs, mask = pad(texts, pad_id)
    pairs = len(texts) == len(documents)  # else each text of a row stands in a row of its own
    return {
        "inputs": inputs,
        "mask": mask,
        "positions": None,
        "real_tokens": sum(len(text) for text in texts) + fields.pop("more_tokens", 0),
        "documents": tuple((document,) for document in documents),
        "task": task,
        "types": _types(documents, inputs.shape[1]) if task.typed and pairs else None,
        **fields,
    }


def pad(rows: Sequence[NDArray[Any]], filling: float) -> tuple[Tensor, Tensor]:
    """Rows filled up on the right to the longest one, and 1 where a row has something."""
    width = max(len(row) for row in rows)
    filled = np.full((len(rows), width), filling, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return torch.from_numpy(filled), torch.from_numpy(mask)


def _types(documents: Sequence[Example], width: int) -> Tensor:
    """1 for the tokens of a second text, 0 for all others."""
    types = torch.zeros(len(documents), width, dtype=torch.long)
    for number, document in enumerate(documents):
        if len(document.parts) == 2:
            types[number, document.parts[0] : document.length] = 1
    return types


def _hidden(
    documents: Sequence[Example], task: Task, draws: Sequence[Sequence[int]]
) -> dict[str, Any]:
    shown, targets = [], []
    for document, draw in zip(documents, draws, strict=True):
        tokens, goal = hide(document, task, draw)
        shown.append(tokens)
        targets.append(np.where(goal, document.tokens, IGNORED))
    return {"texts": shown, "targets": pad(targets, IGNORED)[0]}


def _written(documents: Sequence[Example], *_: Any) -> dict[str, Any]:
    goals = [document.tokens[document.prompt_tokens :] for document in documents]
    return {
        "texts": [document.tokens[: document.prompt_tokens] for document in documents],
        "targets": pad(goals, IGNORED)[0],
        "more_tokens": sum(len(goal) for goal in goals),
    }


def _classes(documents: Sequence[Example], task: Task, _: Any) -> dict[str, Any]:
    numbers = [[task.number(document.labels[0])] for document in documents]
    return {"texts": _whole(documents), "targets": torch.tensor(numbers)}


def _several(documents: Sequence[Example], task: Task, _: Any) -> dict[str, Any]:
    goals = torch.zeros(len(documents), len(task.labels))
    for number, document in enumerate(documents):
        for label in document.labels:
            goals[number, task.number(label)] = 1
    return {"texts": _whole(documents), "targets": goals}


def _values(documents: Sequence[Example], *_: Any) -> dict[str, Any]:
    goals = torch.tensor([[float(document.labels[0])] for document in documents])
    return {"texts": _whole(documents), "targets": goals}


def _tags(documents: Sequence[Example], task: Task, _: Any) -> dict[str, Any]:
    rows = []
    for document in documents:
        row = np.full(document.length, IGNORED, np.int64)
        row[document.trained] = [task.number(label) for label in document.labels]
        rows.append(row)
    return {"texts": _whole(documents), "targets": pad(rows, IGNORED)[0]}


def _alike(documents: Sequence[Example], *_: Any) -> dict[str, Any]:
    """All anchors, then all positives, then the negatives of the rows that have one."""
    texts = [text for part in _texts(documents) for text in part]
    return {"texts": texts, "targets": tell_apart(documents)}


def tell_apart(documents: Sequence[Example]) -> Tensor:
    """What each anchor is to make of every positive and then of every negative.

    (rows, others): 1 for its own positive, 0 for what is another text, and `IGNORED` where one row
    says that two texts are alike and a second would deny it: another row's positive that is the
    same text as its own or as the anchor, or that belongs to the same anchor.
    """
    numbers: dict[bytes, int] = {}
    anchors, positives, negatives = [
        np.array([numbers.setdefault(text.tobytes(), len(numbers)) for text in part], np.int64)
        for part in _texts(documents)
    ]
    own, others = positives[:, None], np.concatenate([positives, negatives])[None]
    alike = (others == own) | (others == anchors[:, None])
    alike[:, : len(anchors)] |= anchors[None] == anchors[:, None]
    targets = np.where(alike, IGNORED, 0)
    np.fill_diagonal(targets, 1)
    return torch.from_numpy(targets)


def _texts(documents: Sequence[Example]) -> list[list[NDArray[Any]]]:
    """All anchors, all positives, and the negatives of the rows that have one."""
    split = [np.split(each.tokens, np.cumsum(each.parts)[:-1]) for each in documents]
    return [[texts[place] for texts in split if place < len(texts)] for place in range(3)]


def _whole(documents: Sequence[Example]) -> list[NDArray[Any]]:
    return [document.tokens for document in documents]


GOALS: dict[str, Callable[..., dict[str, Any]]] = {
    "masked-lm": _hidden,
    "seq2seq": _written,
    "classification": _classes,
    "multi-label": _several,
    "regression": _values,
    "token-classification": _tags,
    "embedding": _alike,
}
"""What each task wants of its rows: the texts that are read, and the targets."""
