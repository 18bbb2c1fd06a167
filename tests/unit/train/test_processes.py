"""How processes divide an update: each document once, about evenly, and nothing changes for one."""

import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from peftkit.base.machine import own_memory, total_memory
from peftkit.data.batch import Layout, Update, divide, make_update, stream_updates
from peftkit.data.example import Example
from peftkit.train.loop import mix, seed_of
from peftkit.train.processes import ALONE, Processes, is_first, join
from peftkit.train.threads import candidate_threads

LAYOUTS = [
    Layout(packing=False, micro_rows=2, pad_id=0),
    Layout(packing=True, micro_rows=2, pad_id=0),
    Layout(packing=False, micro_rows=1, pad_id=0, flat=True, micro_tokens=40),
]
lengths = some.lists(some.integers(1, 60), min_size=1, max_size=40)


def numbered(sizes: list[int]) -> list[Example]:
    return [
        Example(
            np.full(size, number, np.int32),
            np.array([False, *[True] * (size - 1)]),
            f"row:{number}",
            "row",
            "text",
        )
        for number, size in enumerate(sizes)
    ]


def names(update: Update) -> list[str]:
    return [
        document.where
        for batch in update.micro_batches
        for row in batch.documents
        for document in row
    ]


@given(sizes=lengths, parts=some.integers(1, 9))
def test_each_document_is_in_one_part(sizes: list[int], parts: int) -> None:
    found = divide(sizes, parts)
    assert len(found) == parts
    assert sorted(index for own in found for index in own) == list(range(len(sizes)))
    assert found == divide(sizes, parts)


@given(sizes=lengths, parts=some.integers(1, 9))
def test_no_part_has_much_more_than_another(sizes: list[int], parts: int) -> None:
    loads = [sum(sizes[index] for index in own) for own in divide(sizes, parts)]
    assert max(loads) - min(loads) <= max(sizes)


@given(sizes=lengths)
def test_one_part_is_everything_as_it_was(sizes: list[int]) -> None:
    assert divide(sizes, 1) == [list(range(len(sizes)))]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    sizes=lengths,
    parts=some.integers(2, 5),
    rows=some.integers(1, 12),
    seed=some.integers(0, 9),
)
def test_the_parts_of_each_update_are_the_update(
    layout: Layout, sizes: list[int], parts: int, rows: int, seed: int
) -> None:
    """Documents once, and the counts of the whole in every part, also in one with nothing."""
    examples = numbered(sizes)

    def take(part: int, parts: int, start: int, count: int) -> list[Update]:
        stream = stream_updates(
            examples, layout, rows=rows, seed=seed, start=start, part=part, parts=parts
        )
        return list(islice(stream, count))

    whole = take(0, 1, 0, 4)
    divided = [take(part, parts, 0, 4) for part in range(parts)]
    for number, update in enumerate(whole):
        own = [taken[number] for taken in divided]
        assert sorted(name for part in own for name in names(part)) == sorted(names(update))
        counts = {(part.trained_tokens, part.real_tokens) for part in own}
        assert counts == {(update.trained_tokens, update.real_tokens)}
        real = sum(batch.real_tokens for part in own for batch in part.micro_batches)
        assert real == update.real_tokens
    resumed = take(parts - 1, parts, 2, 2)
    assert [names(one) for one in resumed] == [names(one) for one in divided[-1][2:]]


def test_with_fewer_documents_than_parts_some_have_none() -> None:
    parts = [make_update(numbered([5, 9]), LAYOUTS[1], part=part, parts=4) for part in range(4)]
    assert [names(part) for part in parts] == [["row:1"], ["row:0"], [], []]


def test_seeds_differ_between_processes_and_the_first_keeps_its_own() -> None:
    steps = range(1, 40)
    assert [seed_of(7, step, 0) for step in steps] == [mix(7, step) for step in steps]
    every = {
        mix(seed_of(7, step, rank), n) for step in steps for rank in range(9) for n in range(9)
    }
    assert len(every) == len(steps) * 9 * 9


def test_alone_nothing_is_exchanged_or_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert join() == ALONE == Processes(0, 1)
    numbers = torch.tensor([1.0, 2.0])
    ALONE.add_up([numbers])
    ALONE.take_from_first([numbers])
    ALONE.wait()
    assert numbers.tolist() == [1.0, 2.0]
    assert ALONE.tell("told") == "told"
    assert ALONE.largest(15) == 15
    assert not torch.distributed.is_initialized()


def test_who_is_first_is_known_without_torch() -> None:
    script = "import sys, peftkit.train.processes as p; print(p.is_first(), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LOCAL_RANK": "0", "RANK": "8"},
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("local_rank", "rank", "first"),
    [(None, None, True), ("0", "0", True), ("1", "1", False), ("0", "8", False), (None, "1", True)],
)
def test_the_launcher_says_who_is_first(
    monkeypatch: pytest.MonkeyPatch, local_rank: str | None, rank: str | None, *, first: bool
) -> None:
    """`RANK` alone is no launcher's: some clusters set it in every container."""
    for name, value in (("LOCAL_RANK", local_rank), ("RANK", rank)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert is_first() is first


def test_threads_and_memory_of_a_machine_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert candidate_threads() == [1, 12]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert candidate_threads() == [1, 4]
    if not torch.cuda.is_available():
        assert own_memory() == total_memory() // 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "20")
    assert candidate_threads() == [1]
