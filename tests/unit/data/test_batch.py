"""Every row comes once an epoch, and how rows are laid out changes no target."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.batch import Batch, Layout, Update, collate, make_update, stream_updates
from peftkit.data.example import IGNORED, Example

PAD = 0
ONE_A_ROW = Layout(packing=False, micro_rows=3, pad_id=PAD)
PACKED = Layout(packing=True, micro_rows=2, pad_id=PAD)
FLAT = Layout(packing=False, micro_rows=1, pad_id=PAD, flat=True, micro_tokens=9)
LAYOUTS = [ONE_A_ROW, PACKED, FLAT]


@some.composite
def documents(draw: some.DrawFn) -> Example:
    tokens = draw(some.lists(some.integers(1, 99), min_size=2, max_size=12))
    trained = draw(some.lists(some.booleans(), min_size=len(tokens), max_size=len(tokens)))
    trained[0] = False
    return Example(np.array(tokens, np.int32), np.array(trained), "f:1", "d", "text")


def numbered(count: int) -> list[Example]:
    """Documents of which the number can be read off every token."""
    lengths = [2 + number % 5 for number in range(count)]
    return [
        Example(
            np.full(length, number + 1, np.int32),
            np.array([False, *[True] * (length - 1)]),
            f"f:{number}",
            "d",
            "text",
        )
        for number, length in enumerate(lengths)
    ]


def seen(update: Update) -> Counter[int]:
    """How often each numbered document is in an update."""
    found = Counter(
        int(target)
        for batch in update.micro_batches
        for target in batch.targets.flatten()
        if target != IGNORED
    )
    return Counter({number - 1: count // (1 + (number - 1) % 5) for number, count in found.items()})


def taken(
    count: int, layout: Layout, *, rows: int, updates: int, seed: int = 0, start: int = 0
) -> list[Update]:
    stream = stream_updates(numbered(count), layout, rows=rows, seed=seed, start=start)
    return list(islice(stream, updates))


def same(one: Update, other: Update) -> bool:
    if len(one.micro_batches) != len(other.micro_batches):
        return False
    pairs = zip(one.micro_batches, other.micro_batches, strict=True)
    return (one.trained_tokens, one.real_tokens) == (other.trained_tokens, other.real_tokens) and (
        all(torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in pairs)
    )


rows_of_documents = some.lists(
    some.lists(documents(), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(rows=rows_of_documents)
def test_each_token_predicts_the_next_one_of_its_own_document(rows: list[list[Example]]) -> None:
    batch = collate(rows, PAD)
    lengths = [sum(document.length for document in row) for row in rows]
    assert batch.inputs.shape == batch.targets.shape == (len(rows), max(lengths))
    for number, row in enumerate(rows):
        at = 0
        for document in row:
            inputs = batch.inputs[number, at : at + document.length].tolist()
            targets = batch.targets[number, at : at + document.length].tolist()
            learnt = zip(document.tokens[1:].tolist(), document.trained[1:], strict=True)
            assert inputs == document.tokens.tolist()
            assert targets[:-1] == [token if is_learnt else IGNORED for token, is_learnt in learnt]
            assert targets[-1] == IGNORED
            at += document.length
        assert batch.inputs[number, at:].eq(PAD).all()
        assert batch.targets[number, at:].eq(IGNORED).all()
    assert batch.real_tokens == sum(lengths)
    learnt_tokens = sum(document.trained_tokens for row in rows for document in row)
    assert int(batch.targets.ne(IGNORED).sum()) == learnt_tokens


@given(rows=rows_of_documents)
def test_places_start_again_with_every_document(rows: list[list[Example]]) -> None:
    batch = collate(rows, PAD)
    if all(len(row) == 1 for row in rows):
        assert batch.positions is None
        return
    assert batch.positions is not None
    for number, row in enumerate(rows):
        lengths = [document.length for document in row]
        padding = batch.inputs.shape[1] - sum(lengths)
        expected = [place for length in [*lengths, padding] for place in range(length)]
        assert batch.positions[number].tolist() == expected


def test_a_first_token_marked_as_learnt_is_not_predicted_by_the_document_before() -> None:
    marked = Example(np.array([7, 8], np.int32), np.array([True, True]), "f:1", "d", "text")
    assert collate([[marked, marked]], PAD).targets.tolist() == [[8, IGNORED, 8, IGNORED]]


def test_a_batch_moves_as_a_whole() -> None:
    for rows in ([numbered(2)], [[one] for one in numbered(2)]):
        there = collate(rows, PAD).to(torch.device("meta"))
        assert isinstance(there, Batch)
        assert there.real_tokens == 5
        assert there.lengths is None
        assert (there.positions is None) == (len(rows) == 2)
        assert {there.inputs.device.type, there.targets.device.type} == {"meta"}


@given(found=some.lists(documents(), min_size=1, max_size=20), micro=some.integers(0, 30))
def test_a_flat_row_is_documents_end_to_end_and_nothing_else(
    found: list[Example], micro: int
) -> None:
    layout = Layout(packing=False, micro_rows=1, pad_id=PAD, flat=True, micro_tokens=micro)
    update = make_update(found, layout)
    for batch in update.micro_batches:
        assert batch.lengths is not None
        width = batch.inputs.shape[1]
        assert batch.inputs.shape == (1, sum(batch.lengths))
        assert width == batch.real_tokens <= max(micro, *(d.length for d in found))
        assert batch.positions is not None or len(batch.lengths) == 1
        assert batch.to(torch.device("meta")).lengths == batch.lengths
    lengths = [length for batch in update.micro_batches for length in batch.lengths or ()]
    assert sorted(lengths) == sorted(document.length for document in found)
    assert update.trained_tokens == sum(document.trained_tokens for document in found)
    learnt = sum(int(batch.targets.ne(IGNORED).sum()) for batch in update.micro_batches)
    assert learnt == update.trained_tokens


def test_a_flat_row_takes_as_many_documents_as_it_may() -> None:
    wide = Layout(packing=False, micro_rows=1, pad_id=PAD, flat=True, micro_tokens=10_000)
    (batch,) = make_update(numbered(40), wide).micro_batches
    assert batch.lengths == tuple(document.length for document in numbered(40))


@given(found=some.lists(documents(), min_size=1, max_size=20), micro=some.integers(1, 5))
def test_packing_and_micro_batches_change_no_total(found: list[Example], micro: int) -> None:
    longest = max(document.length for document in found)
    targets = []
    for packing in (False, True):
        update = make_update(found, Layout(packing, micro, PAD))
        assert update.trained_tokens == sum(document.trained_tokens for document in found)
        assert update.real_tokens == sum(document.length for document in found)
        assert all(len(batch.inputs) <= micro for batch in update.micro_batches)
        assert all(batch.inputs.shape[1] <= longest for batch in update.micro_batches)
        targets.append(
            sorted(
                t
                for b in update.micro_batches
                for t in b.targets.flatten().tolist()
                if t != IGNORED
            )
        )
    assert targets[0] == targets[1]


@given(
    count=some.integers(1, 12),
    rows=some.integers(1, 30),
    seed=some.integers(0, 99),
    epoch=some.integers(0, 3),
    layout=some.sampled_from(LAYOUTS),
)
def test_every_row_comes_once_an_epoch(
    count: int, rows: int, seed: int, epoch: int, layout: Layout
) -> None:
    """`count` updates of `rows` are `rows` epochs, and `count` updates of one are one."""
    whole = taken(count, layout, rows=rows, updates=count, seed=seed, start=epoch * count)
    assert sum(map(seen, whole), Counter()) == Counter(dict.fromkeys(range(count), rows))
    single = taken(count, layout, rows=1, updates=count, seed=seed, start=epoch * count)
    assert sum(map(seen, single), Counter()) == Counter(range(count))


@given(
    count=some.integers(1, 12),
    rows=some.integers(1, 30),
    start=some.integers(0, 20),
    layout=some.sampled_from(LAYOUTS),
)
def test_an_update_depends_on_its_number_alone(
    count: int, rows: int, start: int, layout: Layout
) -> None:
    last = taken(count, layout, rows=rows, updates=start + 1)[-1]
    assert same(last, taken(count, layout, rows=rows, updates=1, start=start)[0])
    singles = taken(count, layout, rows=1, updates=rows, start=start * rows)
    assert seen(last) == sum(map(seen, singles), Counter())


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        updates = taken(30, ONE_A_ROW, rows=1, updates=30, seed=seed, start=30 * epoch)
        return tuple(number for update in updates for number in seen(update))

    orders = {order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert tuple(range(30)) not in orders


@pytest.mark.parametrize("layout", [ONE_A_ROW, PACKED])
def test_documents_longer_than_any_other_stand_alone(layout: Layout) -> None:
    """The width of a packed row is that of the longest document, never more."""
    long = Example(np.full(50, 9, np.int32), np.array([False, *[True] * 49]), "f:0", "d", "text")
    update = make_update([long, *numbered(3)], layout)
    assert max(batch.inputs.shape[1] for batch in update.micro_batches) == 50
    rows = sum(len(batch.inputs) for batch in update.micro_batches)
    assert rows == (2 if layout.packing else 4)
