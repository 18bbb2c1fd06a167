"""Rows out of one file of each kind, in its order and as they stand; bad ones go to the intake."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

from peftkit.data.lines import PACKED, cannot_read, open_bytes, read_lines, wrong_with
from peftkit.data.rows import Intake, Row
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DOCUMENT_END = "<|endoftext|>"
"""A line of its own in a text file that ends one document and begins the next."""
DOCUMENT = 2**22
"""Characters of a text file after which a document without an end goes on as the next one."""
WHOLE = 2**28
"""Bytes of the largest list that is read in one piece."""
DEEPEST = 64
"""Levels of lists and objects in a row; nothing here looks into deeper ones."""


def kind_of(path: Path) -> str | None:
    """The ending that says how a file is read, without that of the archive; None if none does."""
    suffix = path.suffix.lower()
    if suffix in PACKED:
        inner = path.with_suffix("").suffix.lower()
        return inner if inner in READERS and inner != ".parquet" else None
    return suffix if suffix in READERS else None


def read_file(path: Path, intake: Intake) -> Iterator[Row]:
    """The rows of a file whose kind is known.

    Raises:
        InputError: the file as a whole cannot be read.
    """
    return READERS[kind_of(path) or ""](path, intake)


def _read_jsonl(path: Path, intake: Intake) -> Iterator[Row]:
    # `str.splitlines` would also cut at form feeds and U+2028.
    for number, line in read_lines(path, newline="\n"):
        where = f"{path.name}:{number}"
        start = line.strip()[:40]
        if not start:
            intake.blank += 1
            continue
        if why := wrong_with(line):
            intake.refuse(where, why)
            continue
        try:
            values = parse_json(line)
        except ValueError as problem:
            end = "" if line.endswith("\n") else "; the file ends in this line"
            intake.refuse(where, f"not JSON: {_told(problem)}; starts with `{start}`{end}")
            continue
        if isinstance(values, dict):
            yield Row(values, where)
        else:
            intake.refuse(where, f"expected an object of columns, got `{start}`")


def parse_json(text: str) -> Any:
    """What JSON says, and nothing that another reader would take otherwise.

    Raises:
        ValueError: it is no JSON, holds NaN or a key twice, or is nested too deeply.
    """
    try:
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise _too_deep() from None
    # Few rows have so many brackets that they could be too deep.
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(values):
        raise _too_deep()
    return values


def _told(problem: ValueError) -> str:
    """What is wrong with a line, which has no lines of its own."""
    if isinstance(problem, json.JSONDecodeError):
        return f"{problem.msg} at character {problem.colno}"
    return str(problem)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`{twice}` stands twice in one object")
    return values


def _no_number(word: str) -> Any:
    raise ValueError(f"`{word}` is no number of JSON")


def _too_deep() -> ValueError:
    return ValueError(f"nested more than {DEEPEST} deep")


def _is_deep(values: Any) -> bool:
    """Whether lists and objects stand in each other further than anybody looks."""
    level = [values]
    for _ in range(DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def _read_json(path: Path, intake: Intake) -> Iterator[Row]:
    for number, values in enumerate(_list_in(path), start=1):
        where = f"{path.name}:{number}"
        if isinstance(values, dict):
            yield Row(values, where)
        else:
            intake.refuse(where, f"expected an object of columns, got `{str(values)[:40]}`")


def _list_in(path: Path) -> list[Any]:
    """The list that a file holds, which memory holds whole."""
    with open_bytes(path) as file:
        content = file.read(WHOLE + 1)
    if len(content) > WHOLE:
        raise InputError(
            f"`{path.name}` is a list of more than {WHOLE >> 20} MiB, which must be read whole",
            hint=f"`jq -c '.[]' {path.name}` writes one object a line, for a `.jsonl` file",
        )
    try:
        items = parse_json(content.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise InputError(
            f"{path.name}:{line}: not UTF-8 (byte 0x{content[problem.start]:02x})",
            hint=f"`iconv -f latin1 -t utf-8 {path.name}` converts a Latin-1 file",
        ) from None
    except ValueError as problem:
        raise InputError(
            f"`{path.name}` is not JSON: {problem}", hint="one object a line is `.jsonl`"
        ) from None
    if not isinstance(items, list):
        raise InputError(
            f"`{path.name}`: expected a list of objects, got {type(items).__name__}",
            hint="one object a line is `.jsonl`",
        )
    return items


def _read_csv(path: Path, intake: Intake) -> Iterator[Row]:
    separator = "\t" if kind_of(path) == ".tsv" else ","
    csv.field_size_limit(sys.maxsize)  # its own limit, 128 KiB, is less than a long document
    # Not strict, a quote that is never closed would swallow the rest of the file without a word.
    lines = (line for _, line in read_lines(path, newline=""))
    records = _csv_records(csv.reader(lines, delimiter=separator, strict=True), intake)
    _, header, problem = next(records, (1, [], ""))
    twice = next((f"`{name}` stands twice" for name in header if header.count(name) > 1), "")
    if problem := problem or twice or wrong_with("".join(header)):
        raise InputError(f"{path.name}:1: bad header: {problem}")
    if len(header) == 1 and (other := next((sign for sign in ";\t" if sign in header[0]), "")):
        raise InputError(
            f"{path.name}:1: one column, `{header[0]}`; expected `{separator}` between columns",
            hint="a `.tsv` file has tabs" if other == "\t" else "save it with commas, or as `.tsv`",
        )
    for line, fields, problem in records:
        where = f"{path.name}:{line}"
        if problem := problem or wrong_with("".join(fields)):
            intake.refuse(where, problem)
        elif len(fields) != len(header):
            why = f"expected {len(header)} columns as in the header, got {len(fields)}"
            intake.refuse(where, why)
        else:
            yield Row(dict(zip(header, fields, strict=True)), where)


def _csv_records(reader: Any, intake: Intake) -> Iterator[tuple[int, list[str], str]]:
    """First line, fields and problem of each record that is not blank."""
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as problem:
            # A quote that is never closed takes all that follows for one field.
            lost = f", so lines {first} to {reader.line_num} are one record"
            lines = lost if "end of data" in str(problem) else ""
            yield first, [], f"bad quotes: {problem}{lines}"
            continue
        if fields is None:
            return
        if fields:
            yield first, fields, ""
        else:
            intake.blank += 1


def _read_parquet(path: Path, intake: Intake) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    del intake
    try:
        with parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            rows = (values for batch in batches for values in batch.to_pylist())
            for number, values in enumerate(rows, start=1):
                yield Row(values, f"{path.name}:{number}")
    except UnicodeDecodeError as problem:
        byte = problem.object[problem.start]
        raise InputError(
            f"`{path.name}` holds text that is not UTF-8 (byte 0x{byte:02x})"
        ) from None
    except (pa.ArrowException, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise cannot_read(path, problem) from None
        raise InputError(
            f"`{path.name}` is not a parquet file, or a damaged one: {problem}",
            hint="check that it was written or downloaded fully",
        ) from None


def _read_txt(path: Path, intake: Intake) -> Iterator[Row]:
    for start, lines in _documents(path):
        wrong = next(
            ((at, why) for at, line in enumerate(lines) if (why := wrong_with(line))), None
        )
        if wrong:
            intake.refuse(f"{path.name}:{start + wrong[0]}", wrong[1])
        elif text := "".join(lines).strip("\n"):
            yield Row({"text": text}, f"{path.name}:{start}")


def _documents(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line of each document, and its lines."""
    lines: list[str] = []
    start, size = 1, 0
    for number, line in read_lines(path, newline=None):
        ended = line.strip() == DOCUMENT_END
        if not ended:
            lines.append(line)
            size += len(line)
        if ended or size >= DOCUMENT:
            yield start, lines
            lines, start, size = [], number + 1, 0
    yield start, lines


READERS: dict[str, Callable[[Path, Intake], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
