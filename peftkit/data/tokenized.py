"""The examples of one source, tokenized once and kept for every later run over the same bytes.

An entry holds the Arrow file and `MANIFEST.json` with its size and sha256. One that is damaged is
made again, and where none can be written the run goes on without: it only saves time.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

from peftkit.data.formats import build_examples
from peftkit.data.origin import name_sources
from peftkit.data.rows import Bad, Intake, find_files, read_rows
from peftkit.data.token_key import make_key
from peftkit.disk.cache import cache_limit, entry_folder, make_room, mark_used
from peftkit.disk.digest import sha256_of
from peftkit.disk.durable import whole_folder
from peftkit.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from peftkit.data.draft import Encoder
    from peftkit.data.example import Example
    from peftkit.recipe.sections.data import SourceSection

KIND = "tokens"
EXAMPLES, MANIFEST = "examples.arrow", "MANIFEST.json"
SMALLEST = 2**20
"""Bytes of source files below which nothing is kept: finding and mapping takes 0.2 s at any size.

0.9 MiB of jsonl (5,000 short rows, GPT-2's tokenizer, one core) take 0.77 s to tokenize and 0.07 s
to take from the cache, with 0.14 s for importing pyarrow; at 0.2 MiB nothing is gained.
"""
ROW_BYTES = 200
"""What the short columns of a row take, generously."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Examples of one source, and what happened to its other rows."""

    examples: Sequence[Example]
    skipped: tuple[Bad, ...]
    dropped: int


def read_source(
    source: SourceSection, bad_rows: str, encoder: Encoder, name: str = ""
) -> Tokenized:
    """The examples of a source: from the cache if these bytes were read so before, else built.

    `name` is what they say they are of, where the file's own name would not tell.

    Raises:
        RecipeError: there is no such source.
        InputError: the source as a whole cannot be read.
    """
    files = find_files(source)
    name = name or name_sources([source])[0]
    before = _stamp(files)
    entry = _find_entry(source, name, files, bad_rows, encoder)
    if entry is None:
        return _build(source, name, files, bad_rows, encoder)
    if (kept := load(entry)) is not None:
        mark_used(entry)
        return kept
    built = _build(source, name, files, bad_rows, encoder)
    refused = built.skipped and bad_rows != "skip"  # the run ends here, once all are read
    if not refused and _stamp(files) == before:  # else the entry would say what no file says
        save(entry, built)
    return built


def save(entry: Path, tokenized: Tokenized) -> bool:
    """Keep the examples at `entry`; whether that could be done."""
    from pyarrow import ArrowException

    from peftkit.data.arrow import write_examples

    needed = _bytes_of(tokenized.examples)
    if not make_room(needed):
        return False
    # Another process may put the same entry there first; Arrow takes no half characters.
    with suppress(WriteError, OSError, UnicodeError, ArrowException):
        with whole_folder(entry, needed) as building:
            path = building / EXAMPLES
            write_examples(path, tokenized.examples, tokenized.skipped, tokenized.dropped)
            facts = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            (building / MANIFEST).write_text(json.dumps({EXAMPLES: facts}) + "\n", encoding="utf-8")
        return True
    return False


def load(entry: Path) -> Tokenized | None:
    """What was kept at `entry`; None if nothing was, or it is not what was written."""
    path = entry / EXAMPLES
    try:
        facts = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        found = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        if facts != {EXAMPLES: found}:
            return None

        from peftkit.data.arrow import read_examples  # 0.1 s of pyarrow, where there is a file

        return Tokenized(*read_examples(path))
    except (OSError, ValueError, KeyError, TypeError):  # Arrow's own errors are among these
        return None


def _find_entry(
    source: SourceSection, name: str, files: Sequence[Path], bad_rows: str, encoder: Encoder
) -> Path | None:
    """Where the examples are kept, or would be; None if these are not worth it or cannot be."""
    # Of a file that cannot be read, reading the rows tells what is wrong.
    with suppress(OSError, PackageNotFoundError):
        # A pipe has no size, so it is not read twice.
        if cache_limit() and sum(path.stat().st_size for path in files) >= SMALLEST:
            key = make_key(source, name, files, bad_rows, encoder)
            return entry_folder(KIND, key) if key else None
    return None


def _stamp(files: Sequence[Path]) -> list[tuple[int, ...]] | None:
    """What changes when a file is written to."""
    with suppress(OSError):
        found = [path.stat() for path in files]
        return [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found]
    return None


def _build(
    source: SourceSection, name: str, files: Sequence[Path], bad_rows: str, encoder: Encoder
) -> Tokenized:
    intake = Intake(bad_rows)
    rows = read_rows(source, intake, files)
    examples = list(build_examples(rows, source.format, name, encoder, intake))
    return Tokenized(examples, tuple(intake.found), len(intake.dropped))


def _bytes_of(examples: Sequence[Example]) -> int:
    """About what the Arrow file takes, rather more than less."""
    words = (text for e in examples for text in (e.text, e.prompt, e.answer or ""))
    tokens = sum(example.length for example in examples)
    return sum(map(_length, words)) + tokens * 33 // 8 + len(examples) * ROW_BYTES


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
