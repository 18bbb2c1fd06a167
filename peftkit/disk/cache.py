"""Where things are kept that can be made again: by content, across runs, up to a limit.

An entry is a folder under the digest of everything it follows from, so it is never out of date,
only unused. Without room, or where nothing can be written, runs go on without it. Nothing but
entries is ever removed: the folder may be one that holds other things too.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LIMIT_GIB = 20.0
"""What all entries may take; `PEFTKIT_CACHE_GIB` says another number, 0 keeps nothing."""
ENTRY = re.compile(r"[0-9a-f]{64}(?P<unfinished>\.tmp-[0-9a-f]{8})?")
"""The name of an entry's folder, or of one that is being built or removed."""
ABANDONED_SECONDS = 24 * 3600
"""Untouched for this long, an unfinished entry belongs to a process that is gone."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry, what it takes, and when it was last of use."""

    path: Path
    size: int
    used: float
    removable: bool


def cache_root() -> Path:
    """`$PEFTKIT_CACHE`, or `peftkit` in the user's own cache folder."""
    try:
        if named := os.environ.get("PEFTKIT_CACHE"):
            return Path(named).expanduser()
        shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not shared.is_absolute():  # the standard says to ignore it then
            shared = Path("~/.cache").expanduser()
        return shared / "peftkit"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(os.devnull) / "peftkit"  # nothing is ever found or made there


def cache_limit() -> int:
    """Bytes that all entries together may take; 0 where nothing is to be kept or looked up."""
    try:
        gib = float(os.environ.get("PEFTKIT_CACHE_GIB", ""))
    except ValueError:
        gib = LIMIT_GIB
    if math.isnan(gib):
        gib = LIMIT_GIB
    return int(min(max(gib, 0.0), 2.0**30) * 2**30)


def entry_folder(kind: str, digest: str) -> Path:
    """Where the entry of a kind is, or would be.

    Raises:
        ValueError: `digest` is no sha256 in hex, so the folder would never be counted or removed.
    """
    found = ENTRY.fullmatch(digest)
    if found is None or found["unfinished"]:
        raise ValueError(f"expected a sha256 in hex, got `{digest}`")
    return cache_root() / kind / digest


def mark_used(entry: Path) -> None:
    """Say that an entry was of use, so that others go before it."""
    with suppress(OSError):
        os.utime(entry)


def make_room(needed: int) -> bool:
    """Let the entries go that were not used for longest until `needed` bytes fit; if they do.

    The disk keeps as much again free, so that the run itself does not fill it. If even an empty
    cache would not be enough, nothing is removed.
    """
    limit = cache_limit()
    if not limit:
        return False
    try:
        there = _nearest(cache_root())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            return False
        entries = _list_entries()
        total = sum(entry.size for entry in entries)
        allowed = min(limit - needed, shutil.disk_usage(there).free + total - 2 * needed)
    except OSError:
        return False
    if sum(entry.size for entry in entries if not entry.removable) > allowed:
        return False
    for entry in sorted(entries, key=lambda entry: entry.used):
        if total <= allowed:
            break
        if entry.removable and _remove(entry.path):
            total -= entry.size
    return total <= allowed


def cache_bytes() -> int:
    """What all entries take."""
    return sum(entry.size for entry in _list_entries())


def _nearest(folder: Path) -> Path:
    """The folder itself, or the closest one above that is there."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def _list_entries() -> list[_Entry]:
    """Every entry, the unfinished ones too; what goes away meanwhile is left out."""
    entries = []
    for path in sorted(cache_root().glob("*/*")):
        name = ENTRY.fullmatch(path.name)
        with suppress(OSError):
            if name and path.is_dir() and not path.is_symlink():
                entries.append(_weigh(path, unfinished=bool(name["unfinished"])))
    return entries


def _weigh(path: Path, *, unfinished: bool) -> _Entry:
    size, used = 0, path.stat().st_mtime
    for folder, _, names in os.walk(path):  # unlike `rglob`, bears it that folders vanish
        for name in names:
            with suppress(OSError):
                file = Path(folder, name).lstat()
                size += file.st_size
                if unfinished:  # a long fill touches the file, not the folder
                    used = max(used, file.st_mtime)
    removable = not unfinished or time.time() - used > ABANDONED_SECONDS
    return _Entry(path, size, used, removable)


def _remove(entry: Path) -> bool:
    """Remove an entry; if it is gone.

    It loses its name first: nobody must find half of it.
    """
    leaving = entry.with_name(f"{entry.name[:64]}.tmp-{uuid.uuid4().hex[:8]}")
    with suppress(OSError):
        entry.rename(leaving)
        shutil.rmtree(leaving)
        return True
    return not entry.exists() and not leaving.exists()
