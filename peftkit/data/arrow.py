"""Examples as one Arrow file, and back: what is asked for is made from the mapped file.

Offsets are of 64 bits, so that no batch of long rows is too much. What is learnt takes one bit a
token. Numbers that whole sets are asked for are columns of their own.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from peftkit.data.example import Example
from peftkit.data.views import NUMBERS, Names, View, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

LISTS: dict[str, Any] = {
    "tokens": pa.large_list(pa.field("item", pa.int32(), nullable=False)),
    "trained": pa.large_list(pa.field("item", pa.bool_(), nullable=False)),
}
PLAIN: dict[str, Any] = {
    "where": pa.string(),
    "digest": pa.string(),
    "text": pa.large_string(),
    "prompt_tokens": pa.int64(),
    "prompt": pa.large_string(),
    "answer": pa.large_string(),
    "source": pa.string(),
    "format": pa.string(),
    "cut": pa.int64(),
    "parts": pa.list_(pa.int64()),
    "labels": pa.list_(pa.string()),
    "roles": pa.list_(pa.string()),
    "stops": pa.int64(),
    "cut_answers": pa.int64(),
    "typed": pa.int64(),
    "columns": pa.list_(pa.string()),
}
"""The other fields of an `Example`, in its order."""
COUNTED: dict[str, Any] = {
    "#length": pa.int64(),
    "#trained": pa.int64(),
    "#content": pa.uint64(),
}
"""What follows from the fields and takes long to find out."""
SCHEMA = pa.schema(
    pa.field(name, kind, nullable=name == "answer")
    for name, kind in {**LISTS, **PLAIN, **COUNTED}.items()
)
SHARED = ("source", "format")
"""Of few different values, each kept once in memory."""
TUPLES = ("parts", "labels", "roles", "columns")
"""Short lists, empty for most tasks."""
BATCH_ROWS, BATCH_TOKENS = 1024, 2**20
"""Of what is written, and read, at once; the more of either ends a batch."""


def write_examples(
    path: Path, examples: Iterable[Example], ask: Callable[[int], bool] = lambda _: True
) -> None:
    """Write examples as they come; `ask` says whether there is room for so many more bytes.

    Raises:
        OSError: the file could not be written, or there is no room.
        UnicodeError: a text holds half a character, which Arrow does not take.
    """
    asked = written = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for rows in _portions(examples):
            batch = _batch_of(rows)
            written += batch.nbytes
            if written > asked:
                # As much again as there is: to ask for each batch would weigh the cache each time.
                if not ask(max(batch.nbytes, asked)):
                    raise OSError("no room")
                asked += max(batch.nbytes, asked)
            writer.write_batch(batch)


class ArrowExamples(View):
    """The examples of a file that `write_examples` wrote, mapped and never read as a whole."""

    def __init__(self, path: Path) -> None:
        """Map the file, which may then lose its name.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no such file.
        """
        try:
            with pa.memory_map(str(path)) as file:  # what is taken of it stays mapped
                reader = pa.ipc.open_file(file)
                if not reader.schema.equals(SCHEMA):
                    raise ValueError("other columns")
                self.batches = [reader.get_batch(at) for at in range(reader.num_record_batches)]
        except (pa.ArrowException, ValueError) as problem:
            raise ValueError(f"`{path.name}` does not hold examples: {problem}") from problem
        self.ends = tuple(accumulate(batch.num_rows for batch in self.batches))

    def __len__(self) -> int:
        """Examples in the file."""
        return self.ends[-1] if self.ends else 0

    def at(self, index: int) -> Example:
        """The example at a place from 0 on."""
        number = bisect_right(self.ends, index)
        own = index - (self.ends[number - 1] if number else 0)
        return next(_examples_of(self.batches[number].slice(own, 1)))

    def some(self, places: NDArray[np.int64]) -> list[Example]:
        """The examples at some places, in the order of the places."""
        return gather(places, self.ends, self._take)

    def _take(self, number: int, places: NDArray[np.int64]) -> list[Example]:
        batch = self.batches[number]
        first, count = int(places[0]), len(places)
        if np.array_equal(places, np.arange(first, first + count)):
            return list(_examples_of(batch.slice(first, count)))  # tokens stay in the file
        return list(_examples_of(batch.take(pa.array(places))))

    def __iter__(self) -> Iterator[Example]:
        """The examples in order, of which one batch is in memory at a time."""
        for batch in self.batches:
            yield from _examples_of(batch)

    def numbers(self, name: str) -> NDArray[Any]:
        """One of `NUMBERS` of each example."""
        column = f"#{name}" if f"#{name}" in COUNTED else name
        if column not in SCHEMA.names:
            return super().numbers(name)
        kind = SCHEMA.field(column).type.to_pandas_dtype()
        found = [batch.column(column).to_numpy() for batch in self.batches]
        return np.concatenate([np.empty(0, kind), *found])

    def names(self, name: str) -> Names:
        """The `source` or the `format` of each example."""
        words: dict[str, int] = {}
        numbers = [np.empty(0, np.int16)]
        for batch in self.batches:
            coded = batch.column(name).dictionary_encode()
            own = [words.setdefault(word, len(words)) for word in coded.dictionary.to_pylist()]
            numbers.append(np.array(own, np.int16)[coded.indices.to_numpy()])
        return Names(tuple(words), np.concatenate(numbers))


def _portions(examples: Iterable[Example]) -> Iterator[list[Example]]:
    rows: list[Example] = []
    tokens = 0
    for example in examples:
        rows.append(example)
        tokens += example.length
        if len(rows) >= BATCH_ROWS or tokens >= BATCH_TOKENS:
            yield rows
            rows, tokens = [], 0
    if rows:
        yield rows


def _batch_of(examples: Sequence[Example]) -> Any:
    ends = np.cumsum([0, *(example.length for example in examples)], dtype=np.int64)
    offsets = pa.array(ends)
    lists = [
        pa.LargeListArray.from_arrays(
            offsets, pa.array(np.concatenate([getattr(each, name) for each in examples])), type=kind
        )
        for name, kind in LISTS.items()
    ]
    plain = [pa.array([getattr(each, name) for each in examples], PLAIN[name]) for name in PLAIN]
    counted = [
        pa.array([NUMBERS[name.removeprefix("#")](each) for each in examples], kind)
        for name, kind in COUNTED.items()
    ]
    return pa.RecordBatch.from_arrays([*lists, *plain, *counted], schema=SCHEMA)


def _examples_of(batch: Any) -> Iterator[Example]:
    lists = [_arrays_of(batch.column(name)) for name in LISTS]
    plain = [_values_of(name, batch.column(name)) for name in PLAIN]
    for tokens, trained, *values in zip(*lists, *plain, strict=True):
        yield Example(tokens, trained, *values)


def _arrays_of(column: Any) -> list[NDArray[Any]]:
    """One array a row, none of which can be written to; of numbers, they are views of the file."""
    ends = column.offsets.to_numpy().tolist()
    first, last = ends[0], ends[-1]
    whole = column.values.slice(first, last - first).to_numpy(zero_copy_only=False)
    whole.flags.writeable = False
    return [whole[start - first : end - first] for start, end in pairwise(ends)]


def _values_of(name: str, column: Any) -> list[Any]:
    if name in TUPLES:
        return [tuple(value) for value in column.to_pylist()]
    values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
    return [sys.intern(value) for value in values] if name in SHARED else values
