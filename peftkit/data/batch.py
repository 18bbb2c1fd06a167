"""Rows to batches: which rows an update sees, and how they become tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from peftkit.data.example import IGNORED, Example
from peftkit.data.order import Shuffled
from peftkit.data.packing import pack
from peftkit.data.padded import pad_rows
from peftkit.data.task import CAUSAL, Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from peftkit.data.order import Order


TENSORS = ("inputs", "targets", "positions", "trained", "mask", "types")


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids, the ids to predict at each, and each token's place in its document.

    All are (rows, time). `targets` are already shifted: position t holds token t + 1, or `IGNORED`.
    Padding stands after the tokens, where causal attention never looks, so no mask is needed.

    Other tasks have a mask, and targets of their own: a class a row, a tag a token, what a decoder
    writes, or the number of the row that an anchor belongs to.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor | None
    """None when every row is one document, whose places count up from 0."""
    real_tokens: int
    lengths: tuple[int, ...] | None = None
    """Of the documents, where the batch is one flat row of them; else None."""
    documents: tuple[tuple[Example, ...], ...] = ()
    """What stands in each row, one after the other from its start."""
    trained: Tensor | None = None
    """Where targets are to be predicted, in the flattened batch; known here, so that a GPU is not
    waited for to find out how many there are."""
    task: Task = CAUSAL
    mask: Tensor | None = None
    types: Tensor | None = None
    """1 for the tokens of a second text, where the base is told."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; a GPU gets it while the host goes on."""
        named = {name: getattr(self, name) for name in TENSORS}
        moved = {name: _move(value, device) for name, value in named.items() if value is not None}
        return replace(self, **moved)  # type: ignore[arg-type]  # each name has a tensor of its own


@dataclass(frozen=True, slots=True)
class Update:
    """Everything one optimizer update sees, in micro-batches.

    Where processes divide an update, `micro_batches` are this one's; the counts are the whole's, so
    that what the processes add up is a mean over all tokens.
    """

    micro_batches: tuple[Batch, ...]
    trained_tokens: int
    real_tokens: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How the documents of an update are laid out: speed and memory, never the result."""

    packing: bool
    micro_rows: int
    pad_id: int
    flat: bool = False
    """One row a micro-batch, with neither padding nor mask: for a model that `varlen.enable` has
    switched on. `packing` and `micro_rows` then say nothing.
    """
    micro_tokens: int = 0
    """Most tokens of a flat row, or those of the update's longest document where it has more."""
    task: Task = CAUSAL


def stream_updates(  # noqa: PLR0913 - what an update follows from, and nothing besides
    examples: Sequence[Example],
    layout: Layout,
    *,
    rows: int,
    seed: int,
    start: int = 0,
    part: int = 0,
    parts: int = 1,
    order: Order | None = None,
) -> Iterator[Update]:
    """Updates of `rows` documents for ever, from number `start` on, in seeded order.

    Every document comes once an epoch unless an `order` says otherwise, in one of the `parts`. An
    update is a pure function of its number, so a resumed run needs no saved position.
    """
    order = order or Shuffled(len(examples), seed)
    number = start
    while True:
        places = range(number * rows, (number + 1) * rows)
        documents = [examples[order.at(place)] for place in places]
        draws = [(seed, place) for place in places] if layout.task.name == "masked-lm" else ()
        yield make_update(documents, layout, part=part, parts=parts, draws=draws)
        number += 1


def make_update(
    documents: Sequence[Example],
    layout: Layout,
    *,
    part: int = 0,
    parts: int = 1,
    draws: Sequence[Sequence[int]] = (),
) -> Update:
    """One update from its documents: flat, packed or one a row, in micro-batches.

    What a masked language model must predict follows from `draws`, one for each document.
    """
    lengths = [document.length for document in documents]
    indices = divide(lengths, parts)[part]
    own = [documents[index] for index in indices]
    if layout.task.packs:
        batches = _lay_out(own, layout) if own else []
    else:
        batches = _pad_all(own, layout, [draws[index] for index in indices] if draws else ())
    trained = sum(layout.task.count(document) for document in documents)
    return Update(tuple(batches), trained, sum(lengths))


def divide(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of documents in `parts` of about as many tokens, each index in one, in order.

    The longest goes first, always to the part that has least; with fewer documents than parts some
    are empty.
    """
    found: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        least = loads.index(min(loads))
        found[least].append(index)
        loads[least] += lengths[index]
    return [sorted(own) for own in found]


def _lay_out(documents: Sequence[Example], layout: Layout) -> list[Batch]:
    lengths = [document.length for document in documents]
    if layout.flat:
        bins = pack(lengths, max(layout.micro_tokens, *lengths))
    elif layout.packing:
        # No row is wider than the longest document: attention costs the square of the width.
        bins = pack(lengths, max(lengths))
    else:
        bins = [[index] for index in range(len(documents))]
    rows = [[documents[index] for index in row] for row in bins]
    return [flatten(row) for row in rows] if layout.flat else _collate_all(rows, layout)


def flatten(documents: Sequence[Example]) -> Batch:
    """Documents end to end in one row, with their lengths and no padding."""
    row = collate([documents], pad_id=0)
    return replace(row, lengths=tuple(document.length for document in documents))


def collate_task(
    documents: Sequence[Example], task: Task, pad_id: int, draws: Sequence[Sequence[int]] = ()
) -> Batch:
    """One document a row, with the goals of its task; what is hidden follows from the document."""
    if task.packs:
        return collate([[document] for document in documents], pad_id)
    fixed = draws or [[int(document.digest[:15] or "0", 36)] for document in documents]
    return Batch(**pad_rows(documents, task, pad_id, fixed))


def _pad_all(
    documents: Sequence[Example], layout: Layout, draws: Sequence[Sequence[int]]
) -> list[Batch]:
    """Micro-batches of like lengths, so that little of them is padding."""
    order = sorted(range(len(documents)), key=lambda index: (documents[index].length, index))
    starts = range(0, len(order), layout.micro_rows)
    groups = [order[start : start + layout.micro_rows] for start in starts]
    return [
        collate_task(
            [documents[index] for index in group],
            layout.task,
            layout.pad_id,
            [draws[index] for index in group] if draws else (),
        )
        for group in groups
    ]


def collate(rows: Sequence[Sequence[Example]], pad_id: int) -> Batch:
    """Rows of documents as one padded batch; no document predicts the next one's first token."""
    width = max(sum(document.length for document in row) for row in rows)
    inputs = np.full((len(rows), width), pad_id, np.int64)
    targets = np.full((len(rows), width), IGNORED, np.int64)
    positions = np.zeros((len(rows), width), np.int64)
    real = 0
    for number, row in enumerate(rows):
        at = 0
        for document in row:
            end = at + document.length
            inputs[number, at:end] = document.tokens
            goals = np.where(document.trained, document.tokens, IGNORED)
            targets[number, at : end - 1] = goals[1:]
            positions[number, at:end] = np.arange(document.length)
            at = end
        positions[number, at:] = np.arange(width - at)
        real += at
    alone = all(len(row) == 1 for row in rows)
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(targets),
        None if alone else torch.from_numpy(positions),
        real,
        documents=tuple(tuple(row) for row in rows),
        trained=torch.from_numpy(np.flatnonzero(targets != IGNORED)),
    )


def _move(values: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _collate_all(rows: Sequence[Sequence[Example]], layout: Layout) -> list[Batch]:
    return [
        collate(rows[first : first + layout.micro_rows], layout.pad_id)
        for first in range(0, len(rows), layout.micro_rows)
    ]
