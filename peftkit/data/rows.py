"""Rows out of files: every row keeps its file and line, and bad ones are named, never lost."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import InputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def read_rows(source: SourceSection, intake: Intake) -> Iterator[Row]:
    """Rows of one source in file order, with the recipe's column names."""
    renamed = {actual: expected for expected, actual in source.columns.items()}
    for path in find_files(source):
        count = 0
        for row in READERS[path.suffix.lower()](path, intake):
            count += 1
            missing = [name for name in renamed if name not in row.values]
            if missing:
                known = ", ".join(f"`{name}`" for name in row.values)
                raise InputError(
                    f"{row.where}: no column `{missing[0]}`; the row has {known}",
                    hint=f"correct `columns` of `{source.source}`",
                )
            values = {renamed.get(name, name): value for name, value in row.values.items()}
            yield Row(values, row.where)
        if count == 0 and not intake.found:
            raise InputError(f"`{path}` is empty: no rows", hint="check that it was written fully")


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
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
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
    reader = csv.DictReader(_text(path).splitlines(keepends=True), delimiter=separator)
    for values in reader:
        where = f"{path.name}:{reader.line_num}"
        if None in values or None in values.values():
            intake.refuse(
                where, f"expected {len(reader.fieldnames or ())} columns as in the header"
            )
        else:
            yield Row(dict(values), where)


def _read_parquet(path: Path, intake: Intake) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    del intake
    try:
        file = parquet.ParquetFile(path)
        for batch_number, batch in enumerate(file.iter_batches(batch_size=1024)):
            for number, values in enumerate(batch.to_pylist(), start=1):
                yield Row(values, f"{path.name}:{batch_number * 1024 + number}")
    except pa.ArrowInvalid as problem:
        raise InputError(f"`{path.name}` is not a parquet file: {problem}") from None


def _read_txt(path: Path, intake: Intake) -> Iterator[Row]:
    del intake
    lines: list[str] = []
    start = 1
    for number, line in enumerate(_text(path).splitlines(keepends=True), start=1):
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
