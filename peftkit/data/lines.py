"""The lines of a text file, packed or not, one at a time: memory holds one line, never the file."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKED = (".gz", ".zst")
"""What a text file may be packed as; its own kind stands before."""
LONGEST = 2**28
"""Characters of the longest line: memory must hold it, and an archive may unpack to anything."""
ESCAPED = re.compile("[\udc80-\udcff]")
"""A byte that is no UTF-8, carried along in a text until somebody can say whose it is."""
UTF16 = ("\udcff\udcfe", "\udcfe\udcff")


def read_lines(path: Path, newline: str | None) -> Iterator[tuple[int, str]]:
    """The number and the text of each line, with bytes in it that are no UTF-8 escaped.

    Args:
        path: the file; a byte order mark at its start is no content.
        newline: what ends a line, as `open` has it.

    Raises:
        InputError: the file cannot be read, is a damaged archive, or holds no lines.
    """
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=newline)
        number = 0
        while line := text.readline(LONGEST + 1):
            number += 1
            if number == 1 and line.startswith(UTF16):
                raise InputError(
                    f"{path.name}:1: UTF-16; expected UTF-8",
                    hint=f"`iconv -f utf-16 -t utf-8 {path.name}` converts it",
                )
            if len(line) > LONGEST:
                raise InputError(
                    f"{path.name}:{number}: a line of more than {LONGEST >> 20} MiB",
                    hint="make several rows of it",
                )
            yield number, line


def wrong_with(text: str) -> str:
    """What keeps a text from being one; empty where nothing does."""
    if not text.isascii() and (escaped := ESCAPED.search(text)):
        return f"not UTF-8 (byte 0x{ord(escaped[0]) - 0xDC00:02x})"
    return "holds a NUL byte; is it UTF-16, or no text?" if "\0" in text else ""


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file; what goes wrong while they are read is told by its name.

    Raises:
        InputError: the file cannot be read, or is a damaged archive.
    """
    try:
        with _open(path) as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise _damaged(path, problem) from None
    except OSError as problem:
        if problem.errno is None:  # pyarrow's word for a damaged archive
            raise _damaged(path, problem) from None
        raise cannot_read(path, problem) from None


def cannot_read(path: Path, problem: OSError) -> InputError:
    """What to raise where the operating system does not give a file."""
    reason = (problem.strerror or str(problem)).lower()
    return InputError(f"`{path}` cannot be read: {reason}", hint=f"see `ls -l {path}`")


def _open(path: Path) -> BinaryIO:
    packed = path.suffix.lower()
    if packed == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if packed == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _damaged(path: Path, problem: Exception) -> InputError:
    return InputError(
        f"`{path.name}` is a damaged or truncated archive: {str(problem).lower()}",
        hint="check that it was written or downloaded fully",
    )
