"""Rows out of files: every row keeps its file and line, and bad ones are named, never lost."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import InputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from peftkit.recipe.sections.data import SourceSection

DOCUMENT_END = "<|endoftext|>"
"""A line of its own in a text file that ends one document and begins the next."""
SHOWN = 20
"""Bad rows named in one message; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record as read, and where it stands."""

    values: dict[str, Any]
    where: str

    @property
    def digest(self) -> str:
        """Sha256 of the record's content, whatever file it stands in."""
        text = json.dumps(self.values, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that could not be used, and why."""

    where: str
    why: str


@dataclass(slots=True)
class Intake:
    """What became of the rows of one data set that were not taken, told all at once."""

    policy: str
    found: list[Bad] = field(default_factory=list)
    dropped: list[Bad] = field(default_factory=list)

    def refuse(self, where: str, why: str) -> None:
        """Remember one bad row."""
        self.found.append(Bad(where, why))

    def drop(self, where: str, why: str) -> None:
        """Remember one row that the recipe leaves out."""
        self.dropped.append(Bad(where, why))

    def settle(self, what: str) -> None:
        """Refuse the data if there were bad rows and the recipe does not skip them."""
        if not self.found or self.policy == "skip":
            return
        shown = [f"{bad.where}: {bad.why}" for bad in self.found[:SHOWN]]
        if len(self.found) > SHOWN:
            shown.append(f"… and {len(self.found) - SHOWN} more")
        raise InputError(
            f"{len(self.found)} bad {'row' if len(self.found) == 1 else 'rows'} in the {what} data",
            problems=shown,
            hint="mend them, or `data.bad_rows: skip` leaves them out and lists each one",
        )


def read_rows(
    source: SourceSection, intake: Intake, files: Sequence[Path] | None = None
) -> Iterator[Row]:
    """Rows of one source in file order, with the recipe's column names.

    `files` are those of the source, where `find_files` was asked before.
    """
    fitting = 0
    for path in find_files(source) if files is None else files:
        count, bad = 0, len(intake.found)
        for row in READERS[path.suffix.lower()](path, intake):
            count += 1
            missing = [name for name in source.columns.values() if name not in row.values]
            if not missing:
                fitting += 1
                yield Row(_renamed(row.values, source.columns), row.where)
                continue
            has = ", ".join(f"`{name}`" for name in row.values) or "no columns"
            why = f"no column `{missing[0]}`; the row has {has}"
            if not fitting:  # the first row already: the recipe is wrong, not the row
                hint = f"correct `columns` of `{source.source}`"
                raise InputError(f"{row.where}: {why}", hint=hint)
            intake.refuse(row.where, why)
        if count == 0 and len(intake.found) == bad:
            raise InputError(f"`{path}` is empty: no rows", hint="check that it was written fully")


def _renamed(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The row with the recipe's names; a column that already bore one of them gives way."""
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in values.items() if name not in taken}
    return {expected: values[actual] for expected, actual in columns.items()} | kept


def find_files(source: SourceSection) -> list[Path]:
    """The files a source names, in name order."""
    if source.source.startswith("hub:"):
        return _download(source.source)
    path = Path(source.source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in READERS and p.is_file())
        if not files:
            raise InputError(f"`{path}` holds no {_listed(READERS)} files")
        return files
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix.lower() in READERS)[:5]
        hint = f"beside it: {', '.join(near)}" if near else "paths are relative to the recipe"
        raise RecipeError(f"no data at `{path}`", hint=hint)
    if path.suffix.lower() not in READERS:
        raise RecipeError(
            f"`{path}`: expected {_listed(READERS)}, got `{path.suffix or path.name}`"
        )
    return [path]


def _listed(words: dict[str, Any]) -> str:
    return ", ".join(words)


def _text(path: Path) -> str:
    """The whole file.

    `io.StringIO` makes lines of it: `str.splitlines` would also cut at form feeds and U+2028.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise InputError(
            f"{path.name}:{line}: not UTF-8 (byte 0x{data[problem.start]:02x})",
            hint=f"`iconv -f latin1 -t utf-8 {path.name}` converts a Latin-1 file",
        ) from None


def _read_jsonl(path: Path, intake: Intake) -> Iterator[Row]:
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line_bytes in enumerate(data.split(b"\n"), start=1):
        where = f"{path.name}:{number}"
        try:
            line = line_bytes.decode()
        except UnicodeDecodeError as problem:
            intake.refuse(where, f"not UTF-8 (byte 0x{line_bytes[problem.start]:02x})")
            continue
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as problem:
            intake.refuse(where, f"not JSON: {problem}; starts with `{line.strip()[:40]}`")
            continue
        if isinstance(values, dict):
            yield Row(values, where)
        else:
            intake.refuse(where, f"expected an object of columns, got `{line.strip()[:40]}`")


def _read_json(path: Path, intake: Intake) -> Iterator[Row]:
    try:
        items = json.loads(_text(path))
    except (ValueError, RecursionError) as problem:
        raise InputError(
            f"`{path.name}` is not JSON: {problem}", hint="one object a line is `.jsonl`"
        ) from None
    if not isinstance(items, list):
        raise InputError(
            f"`{path.name}`: expected a list of objects, got {type(items).__name__}",
            hint="one object a line is `.jsonl`",
        )
    for number, values in enumerate(items, start=1):
        where = f"{path.name}:{number}"
        if isinstance(values, dict):
            yield Row(values, where)
        else:
            intake.refuse(where, f"expected an object of columns, got `{str(values)[:40]}`")


def _read_csv(path: Path, intake: Intake) -> Iterator[Row]:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(sys.maxsize)  # its own limit, 128 KiB, is less than a long document
    # Not strict, a quote that is never closed would swallow the rest of the file without a word.
    lines = io.StringIO(_text(path), newline="")
    records = _csv_records(csv.reader(lines, delimiter=separator, strict=True))
    _, header, problem = next(records, (1, [], ""))
    if problem or len(set(header)) < len(header):
        twice = next((f"`{name}` stands twice" for name in header if header.count(name) > 1), "")
        raise InputError(f"{path.name}:1: bad header: {problem or twice}")
    for line, fields, problem in records:
        where = f"{path.name}:{line}"
        if problem:
            intake.refuse(where, f"bad quotes: {problem}")
        elif len(fields) != len(header):
            why = f"expected {len(header)} columns as in the header, got {len(fields)}"
            intake.refuse(where, why)
        else:
            yield Row(dict(zip(header, fields, strict=True)), where)


def _csv_records(reader: Any) -> Iterator[tuple[int, list[str], str]]:
    """Line, fields and problem of each record that is not blank."""
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as problem:
            yield reader.line_num, [], str(problem)
            continue
        if fields is None:
            return
        if fields:
            yield reader.line_num, fields, ""


def _read_parquet(path: Path, intake: Intake) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    del intake
    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=1024)
        rows = (values for batch in batches for values in batch.to_pylist())
        for number, values in enumerate(rows, start=1):
            yield Row(values, f"{path.name}:{number}")
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"`{path.name}` is not a parquet file: {problem}") from None


def _read_txt(path: Path, intake: Intake) -> Iterator[Row]:
    del intake
    lines: list[str] = []
    start = 1
    for number, line in enumerate(io.StringIO(_text(path), newline=None), start=1):
        if line.strip() != DOCUMENT_END:
            lines.append(line)
            continue
        if text := "".join(lines).strip("\n"):
            yield Row({"text": text}, f"{path.name}:{start}")
        lines, start = [], number + 1
    if text := "".join(lines).strip("\n"):
        yield Row({"text": text}, f"{path.name}:{start}")


def _download(name: str) -> list[Path]:
    from peftkit.data.hub import download

    return download(name)


READERS: dict[str, Callable[[Path, Intake], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
