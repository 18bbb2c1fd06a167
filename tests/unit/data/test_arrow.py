"""Examples come back from the file as they were, the tokens as views of it."""

from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data import arrow
from peftkit.data.arrow import SCHEMA, ArrowExamples, write_examples
from peftkit.data.example import Example
from peftkit.data.views import NUMBERS, Chained, Picked, names_of, numbers_of

whole = some.text(some.characters(exclude_categories=["Cs"]), max_size=12)
numbers = some.integers(0, 2**40)


@some.composite
def examples(draw: Any) -> Example:
    ids = draw(some.lists(some.integers(-(2**31), 2**31 - 1), max_size=9))
    learnt = draw(some.lists(some.booleans(), min_size=len(ids), max_size=len(ids)))
    return Example(
        np.asarray(ids, np.int32),
        np.asarray(learnt, np.bool_),
        *(draw(whole) for _ in range(3)),
        prompt_tokens=draw(numbers),
        prompt=draw(whole),
        answer=draw(some.none() | whole),
        source=draw(whole),
        format=draw(whole),
        cut=draw(numbers),
        columns=tuple(draw(some.lists(whole, max_size=2))),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For hypothesis, which may not ask for a folder a test."""
    return tmp_path_factory.mktemp("arrow") / "examples.arrow"


def assert_same(found: Example, wanted: Example) -> None:
    for field in fields(Example):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        assert type(one) is type(other)
        if isinstance(one, np.ndarray):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert one.tobytes() == other.tobytes()
        else:
            assert one == other


@given(given=some.lists(examples(), max_size=5))
def test_what_is_written_is_read(given: list[Example], path: Path) -> None:
    write_examples(path, given)
    found = ArrowExamples(path)
    assert len(found) == len(given)
    for number, (one, other) in enumerate(zip(found, given, strict=True)):
        assert_same(one, other)
        assert_same(found[number], other)


@given(given=some.lists(examples(), max_size=12), places=some.lists(some.integers(0, 11)))
def test_a_set_is_asked_for_numbers_and_for_some_of_its_examples(
    given: list[Example], places: list[int], path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow, "BATCH_ROWS", 3)
        write_examples(path, given)
    found = ArrowExamples(path)
    for name in NUMBERS:
        ours, theirs = numbers_of(found, name), numbers_of(given, name)
        assert (ours.tolist(), ours.dtype) == (theirs.tolist(), theirs.dtype)
    for name in ("source", "format"):
        assert names_of(found, name).used == sorted({getattr(each, name) for each in given})
    chosen = [place for place in places if place < len(given)]
    picked = Picked(found, np.array(chosen, np.int64))
    both = Chained([found, picked])
    wanted = [*given, *(given[place] for place in chosen)]
    assert len(both) == len(wanted)
    assert numbers_of(both, "content").tolist() == [each.content for each in wanted]
    for one, other in zip(both, wanted, strict=True):
        assert_same(one, other)


def test_a_field_is_a_column_and_what_takes_long_is_counted_once() -> None:
    names = [field.name for field in fields(Example)]
    assert SCHEMA.names[: len(names)] == names
    assert {name.removeprefix("#") for name in SCHEMA.names[len(names) :]} < set(NUMBERS)


def make(count: int) -> list[Example]:
    ids = [np.arange(number % 7 + 1, dtype=np.int32) + number for number in range(count)]
    return [
        Example(each, each % 3 > 0, f"a.jsonl:{number}", "d" * 64, "t" * number, source="a.jsonl")
        for number, each in enumerate(ids)
    ]


def test_more_rows_than_a_batch_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "BATCH_ROWS", 4)
    given = make(11)
    write_examples(tmp_path / "a.arrow", given)
    with pa.memory_map(str(tmp_path / "a.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 3
    for one, other in zip(ArrowExamples(tmp_path / "a.arrow"), given, strict=True):
        assert_same(one, other)


def owner(array: Any) -> Any:
    """Whose memory an array shows."""
    return owner(array.base) if isinstance(array.base, np.ndarray) else array.base


def test_tokens_are_views_that_cannot_be_written_to(tmp_path: Path) -> None:
    long = np.arange(100_000, dtype=np.int32)
    given = [*make(50), Example(long, long > 5, "b:1", "d" * 64, "", source="a.jsonl")]
    write_examples(tmp_path / "a.arrow", given)
    found = ArrowExamples(tmp_path / "a.arrow")
    before = pa.total_allocated_bytes()
    whole = list(found[:51])
    assert pa.total_allocated_bytes() - before < long.nbytes / 2  # a byte of `trained` a token
    assert {type(owner(example.tokens)) for example in whole} == {pa.Int32Array}
    (tmp_path / "a.arrow").unlink()
    for one, other in zip(whole, given, strict=True):
        assert_same(one, other)
        for array in (one.tokens, one.trained):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
    assert_same(found[50], given[50])
    assert len({id(example.source) for example in whole}) == 1


def test_long_rows_make_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BATCH_TOKENS", 10)
    write_examples(tmp_path / "a.arrow", make(11))
    with pa.memory_map(str(tmp_path / "a.arrow")) as file:
        reader = pa.ipc.open_file(file)
        rows = [reader.get_batch(at).num_rows for at in range(reader.num_record_batches)]
    assert rows == [4, 2, 3, 2]  # of 1 to 7 tokens each


def test_room_is_asked_for_as_the_file_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "BATCH_ROWS", 1)
    asked: list[int] = []

    def ask(needed: int) -> bool:
        asked.append(needed)
        return len(asked) < 4

    made = iter(make(1000))
    with pytest.raises(OSError, match="no room"):
        write_examples(tmp_path / "a.arrow", made, ask)
    assert len(list(made)) > 900  # it stopped where there was none
    assert all(one <= other for one, other in pairwise(asked))
    assert len(asked) == 4


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    tokens = np.zeros(1, np.int32)
    with pytest.raises(UnicodeError):
        write_examples(tmp_path / "a.arrow", [Example(tokens, tokens > 0, "\ud800", "", "")])


@pytest.mark.parametrize(
    "content", [b"", b"ARROW1", b"not arrow at all", b"ARROW1\0\0" + b"x" * 90]
)
def test_what_is_no_arrow_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(ValueError, match=r"`a.arrow` does not hold examples"):
        ArrowExamples(tmp_path / "a.arrow")


def test_other_columns_are_refused(tmp_path: Path) -> None:
    table = pa.table({"tokens": pa.array([[1]])})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="other columns"):
        ArrowExamples(tmp_path / "a.arrow")


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ArrowExamples(tmp_path / "a.arrow")
