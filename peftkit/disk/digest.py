"""What is in a file, as one number: the same content has the same one, whatever it is called."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


LARGE = 1 << 26
"""Bytes from which a file is read once only, as long as neither its size nor its time changes."""


def sha256_of(path: Path) -> str:
    """Sha256 of a file's content, in hex."""
    seen = path.stat()
    if seen.st_size < LARGE:
        return _read(path)
    return _read_once(path, (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns))


@lru_cache(maxsize=256)
def _read_once(path: Path, _: tuple[int, ...]) -> str:
    return _read(path)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
