"""Examples come back from the file as they were, the tokens as views of it."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data import arrow
from peftkit.data.arrow import SCHEMA, read_examples, write_examples
from peftkit.data.example import Example
from peftkit.data.rows import Bad

whole = some.text(some.characters(exclude_categories=["Cs"]), max_size=12)
anything = some.text(some.characters(exclude_categories=[]), max_size=12)
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


@given(
    given=some.lists(examples(), max_size=5),
    skipped=some.lists(some.builds(Bad, anything, anything), max_size=3),
    dropped=numbers,
)
def test_what_is_written_is_read(
    given: list[Example], skipped: list[Bad], dropped: int, path: Path
) -> None:
    write_examples(path, given, skipped, dropped)
    found, bad, gone = read_examples(path)
    assert (bad, gone) == (tuple(skipped), dropped)
    for one, other in zip(found, given, strict=True):
        assert_same(one, other)


def test_a_field_is_a_column() -> None:
    assert SCHEMA.names == [field.name for field in fields(Example)]


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
    write_examples(tmp_path / "a.arrow", given, (), 0)
    with pa.memory_map(str(tmp_path / "a.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 3
    for one, other in zip(read_examples(tmp_path / "a.arrow")[0], given, strict=True):
        assert_same(one, other)


def owner(array: Any) -> Any:
    """Whose memory an array shows."""
    return owner(array.base) if isinstance(array.base, np.ndarray) else array.base


def test_tokens_are_views_that_cannot_be_written_to(tmp_path: Path) -> None:
    long = np.arange(100_000, dtype=np.int32)
    given = [*make(50), Example(long, long > 5, "b:1", "d" * 64, "", source="a.jsonl")]
    write_examples(tmp_path / "a.arrow", given, (), 0)
    before = pa.total_allocated_bytes()
    found = read_examples(tmp_path / "a.arrow")[0]
    assert pa.total_allocated_bytes() - before < long.nbytes / 2  # a byte of `trained` a token
    owners = {type(owner(example.tokens)) for example in found}
    assert owners == {pa.Int32Array}
    (tmp_path / "a.arrow").unlink()
    for one, other in zip(found, given, strict=True):
        assert_same(one, other)
        for array in (one.tokens, one.trained):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
    assert len({id(example.source) for example in found}) == 1


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    tokens = np.zeros(1, np.int32)
    with pytest.raises(UnicodeError):
        write_examples(tmp_path / "a.arrow", [Example(tokens, tokens > 0, "\ud800", "", "")], (), 0)


@pytest.mark.parametrize(
    "content", [b"", b"ARROW1", b"not arrow at all", b"ARROW1\0\0" + b"x" * 90]
)
def test_what_is_no_arrow_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(ValueError, match=r"`a.arrow` does not hold examples"):
        read_examples(tmp_path / "a.arrow")


def test_other_columns_are_refused(tmp_path: Path) -> None:
    table = pa.table({"tokens": pa.array([[1]])})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="other columns"):
        read_examples(tmp_path / "a.arrow")


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_examples(tmp_path / "a.arrow")
