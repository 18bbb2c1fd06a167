"""Examples as one Arrow file, and back: tokens stay in the mapped file, the rest is copied out.

Offsets are of 64 bits, so that no batch of long rows is too much. What is learnt takes one bit a
token in the file and, as before, one byte in memory.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from peftkit.data.example import Example
from peftkit.data.rows import Bad

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
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
    "columns": pa.list_(pa.string()),
}
"""The other fields of an `Example`, in its order."""
SCHEMA = pa.schema(
    pa.field(name, kind, nullable=name == "answer") for name, kind in {**LISTS, **PLAIN}.items()
)
SHARED = ("source", "format")
"""Of few different values, each kept once in memory."""
TUPLES = ("parts", "labels", "columns")
"""Short lists, empty for most tasks."""
NOT_TAKEN = b"not_taken"
BATCH_ROWS = 4096


def write_examples(
    path: Path, examples: Sequence[Example], skipped: Sequence[Bad], dropped: int
) -> None:
    """Write the examples of one source, and what happened to its other rows.

    Raises:
        OSError: the file could not be written.
        UnicodeError: a text holds half a character, which Arrow does not take.
    """
    rest = {"skipped": [[bad.where, bad.why] for bad in skipped], "dropped": dropped}
    schema = SCHEMA.with_metadata({NOT_TAKEN: json.dumps(rest).encode()})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for first in range(0, len(examples), BATCH_ROWS):
            writer.write_batch(_batch_of(examples[first : first + BATCH_ROWS], schema))


def read_examples(path: Path) -> tuple[list[Example], tuple[Bad, ...], int]:
    """What `write_examples` was given.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file.
    """
    try:
        with pa.memory_map(str(path)) as file:  # what is taken of it stays mapped
            reader = pa.ipc.open_file(file)
            if not reader.schema.equals(SCHEMA):
                raise ValueError("other columns")
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (pa.ArrowException, ValueError) as problem:
        raise ValueError(f"`{path.name}` does not hold examples: {problem}") from problem
    rest = json.loads(reader.schema.metadata[NOT_TAKEN])
    examples = [example for batch in batches for example in _examples_of(batch)]
    return examples, tuple(Bad(*each) for each in rest["skipped"]), rest["dropped"]


def _batch_of(examples: Sequence[Example], schema: Any) -> Any:
    ends = np.cumsum([0, *(example.length for example in examples)], dtype=np.int64)
    offsets = pa.array(ends)
    lists = [
        pa.LargeListArray.from_arrays(
            offsets, pa.array(np.concatenate([getattr(each, name) for each in examples])), type=kind
        )
        for name, kind in LISTS.items()
    ]
    plain = [pa.array([getattr(each, name) for each in examples], PLAIN[name]) for name in PLAIN]
    return pa.RecordBatch.from_arrays([*lists, *plain], schema=schema)


def _examples_of(batch: Any) -> Iterator[Example]:
    lists = [_arrays_of(batch.column(name)) for name in LISTS]
    plain = [_values_of(name, batch.column(name)) for name in PLAIN]
    for tokens, trained, *values in zip(*lists, *plain, strict=True):
        yield Example(tokens, trained, *values)


def _arrays_of(column: Any) -> list[NDArray[Any]]:
    """One array a row, none of which can be written to; of numbers, they are views of the file."""
    whole = column.values.to_numpy(zero_copy_only=False)
    whole.flags.writeable = False
    ends = column.offsets.to_numpy().tolist()
    return [whole[start:end] for start, end in pairwise(ends)]


def _values_of(name: str, column: Any) -> list[Any]:
    if name in TUPLES:
        return [tuple(value) for value in column.to_pylist()]
    values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
    return [sys.intern(value) for value in values] if name in SHARED else values
