"""The examples of one source, tokenized once and kept for every later run over the same bytes.

An entry holds the Arrow file and `MANIFEST.json` with its size and sha256, and what happened to the
other rows. One that is damaged is made again. Where none can be written the run goes on without:
with a temporary file where the rows are many, and in memory where they are few or even that fails.
"""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.data.formats import build_examples
from peftkit.data.origin import name_sources
from peftkit.data.rows import Bad, Intake
from peftkit.data.sources import find_files, read_rows
from peftkit.data.token_key import make_key
from peftkit.disk.cache import cache_limit, entry_folder, make_room, mark_used
from peftkit.disk.digest import sha256_of
from peftkit.disk.durable import whole_folder
from peftkit.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from peftkit.data.draft import Encoder
    from peftkit.data.example import Example
    from peftkit.recipe.sections.data import SourceSection

LOG = logging.getLogger(__name__)
KIND = "tokens"
EXAMPLES, MANIFEST = "examples.arrow", "MANIFEST.json"
SMALLEST = 2**20
"""Bytes of source files below which nothing is kept: finding and mapping takes 0.2 s at any size.

0.9 MiB of jsonl (5,000 short rows, GPT-2's tokenizer, one core) take 0.77 s to tokenize and 0.07 s
to take from the cache, with 0.14 s for importing pyarrow; at 0.2 MiB nothing is gained.
"""
FEW_ROWS, FEW_TOKENS = 10_000, 2**22
"""What memory holds of a source that is not kept; more goes into a temporary file."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Examples of one source, and what happened to its other rows."""

    examples: Sequence[Example]
    skipped: tuple[Bad, ...]
    dropped: int
    blank: int = 0


@dataclass(frozen=True, slots=True)
class Recital:
    """A source whose examples can be made from the first row on, as often as it is asked."""

    source: SourceSection
    name: str
    files: Sequence[Path]
    bad_rows: str
    encoder: Encoder

    def begin(self) -> tuple[Iterator[Example], Intake]:
        """The examples, and the intake that fills as they are made.

        Once the source is sure to be refused there are no more examples, only bad rows.
        """
        intake = Intake(self.bad_rows)
        rows = read_rows(self.source, intake, self.files)
        made = build_examples(rows, self.source.format, self.name, self.encoder, intake)
        return (example for example in made if not intake.refusing), intake

    @property
    def repeats(self) -> bool:
        """Whether it can be begun again; a pipe cannot."""
        return all(path.is_file() for path in self.files)


def read_source(
    source: SourceSection, bad_rows: str, encoder: Encoder, name: str = ""
) -> Tokenized:
    """The examples of a source: from the cache if these bytes were read so before, else built.

    `name` is what they say they are of, where the file's own name would not tell.

    Raises:
        RecipeError: there is no such source.
        InputError: the source as a whole cannot be read.
    """
    encoder = encoder.for_source(source)
    files = find_files(source, encoder.reading.commits)
    recital = Recital(source, name or name_sources([source])[0], files, bad_rows, encoder)
    before = _stamp(files)
    entry = _find_entry(recital)
    if entry is None:
        return _hold(recital)
    if not encoder.reading.fresh and (kept := load(entry)) is not None:
        mark_used(entry)
        return kept
    return _keep(entry, recital, before) or _hold(recital)


def load(entry: Path) -> Tokenized | None:
    """What was kept at `entry`; None if nothing was, or it is not what was written."""
    path = entry / EXAMPLES
    try:
        told = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        if told[EXAMPLES] != _seal(path):
            return None

        from peftkit.data.arrow import ArrowExamples  # 0.1 s of pyarrow, where there is a file

        skipped = tuple(Bad(*each) for each in told["skipped"])
        return Tokenized(ArrowExamples(path), skipped, told["dropped"], told["blank"])
    except (OSError, ValueError, KeyError, TypeError):  # Arrow's own errors are among these
        return None


class _NotKeptError(Exception):
    """What was read is not what the entry would say it is."""


def _keep(entry: Path, recital: Recital, before: object) -> Tokenized | None:
    """The examples, kept at `entry` from now on; None where that could not be done."""
    from pyarrow import ArrowException

    from peftkit.data.arrow import ArrowExamples, write_examples

    examples, intake = recital.begin()
    try:
        # Another process may put the same entry there first; Arrow takes no half characters.
        with suppress(WriteError, OSError, UnicodeError, ArrowException):
            with whole_folder(entry, 0) as building:
                path = building / EXAMPLES
                write_examples(path, examples, make_room)
                if intake.refusing or _stamp(recital.files) != before:
                    raise _NotKeptError
                found = _account(ArrowExamples(path), intake)
                told = {
                    EXAMPLES: _seal(path),
                    "skipped": [[bad.where, bad.why] for bad in found.skipped],
                    "dropped": found.dropped,
                    "blank": found.blank,
                }
                (building / MANIFEST).write_text(json.dumps(told) + "\n", encoding="utf-8")
            return found
    except _NotKeptError:
        return _account((), intake) if intake.refusing else None  # the run ends, once all are read
    return None if recital.encoder.reading.fresh else load(entry)


def _hold(recital: Recital) -> Tokenized:
    """The examples in memory, or in a file without a name where they are many."""
    from pyarrow import ArrowException

    examples, intake = recital.begin()
    head = list(_few(examples))
    following = next(examples, None)
    if following is None:
        return _account(head, intake)
    with suppress(OSError, UnicodeError, ArrowException):
        return _account(_spill(chain(head, [following], examples)), intake)
    if not recital.repeats:
        raise WriteError(
            f"`{tempfile.gettempdir()}` has no room for the rows of `{recital.name}`",
            hint="make room, or let TMPDIR name another folder",
        )
    LOG.warning(
        "the rows of `%s` stay in memory: neither the cache nor `%s` takes them",
        recital.name,
        tempfile.gettempdir(),
    )
    examples, intake = recital.begin()
    return _account(list(examples), intake)


def _few(examples: Iterator[Example]) -> Iterator[Example]:
    """The first examples, up to what memory is to hold."""
    tokens = 0
    for example in islice(examples, FEW_ROWS):
        yield example
        tokens += example.length
        if tokens > FEW_TOKENS:
            return


def _spill(examples: Iterable[Example]) -> Sequence[Example]:
    """The same examples in a temporary file, which goes when nobody looks at it any more."""
    from peftkit.data.arrow import ArrowExamples, write_examples

    with tempfile.NamedTemporaryFile(prefix="peftkit-", suffix=".arrow") as file:
        write_examples(Path(file.name), examples)
        return ArrowExamples(Path(file.name))


def _account(examples: Sequence[Example], intake: Intake) -> Tokenized:
    return Tokenized(examples, tuple(intake.found), len(intake.dropped), intake.blank)


def _seal(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _find_entry(recital: Recital) -> Path | None:
    """Where the examples are kept, or would be; None if these are not worth it or cannot be."""
    # Of a file that cannot be read, reading the rows tells what is wrong.
    with suppress(OSError, PackageNotFoundError):
        # A pipe has no size, so it is not read twice.
        if cache_limit() and sum(path.stat().st_size for path in recital.files) >= SMALLEST:
            key = make_key(
                recital.source, recital.name, recital.files, recital.bad_rows, recital.encoder
            )
            return entry_folder(KIND, key) if key else None
    return None


def _stamp(files: Sequence[Path]) -> list[tuple[int, ...]] | None:
    """What changes when a file is written to."""
    with suppress(OSError):
        found = [path.stat() for path in files]
        return [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found]
    return None
