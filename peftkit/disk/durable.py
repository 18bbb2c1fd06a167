"""Files and folders that are whole or absent, after a crash, a full disk or a power cut alike.

What is new is built beside its place, made to reach the disk, and renamed into place; then the
folder that holds the name is made to reach the disk too. What a killed process leaves behind ends
in `.tmp-<id>` and is swept away by the next run. What could not be written is a `WriteError`.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from peftkit.disk.size import show_bytes
from peftkit.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No room: on the disk, in the quota, or in what one file may take."""


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by a file that holds `text`, or leave it as it was."""
    content = text.encode()
    building = _beside(path)
    with explained(path, len(content)):
        make_folder(path.parent)
        try:
            with building.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            building.replace(path)
        finally:
            building.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def whole_folder(final: Path, needed: int) -> Iterator[Path]:
    """A folder to fill, which stands at `final` with all that is in it once the block ends.

    If anything fails, what stood at `final` still does. `needed` bytes are what an error asks for.
    """
    building, aside = _beside(final), _beside(final)
    with explained(final, needed):
        try:
            make_folder(building)
            yield building
            sync_files(building)
            sync(building)
            if final.exists():
                final.rename(aside)
            _put(building, final, aside)
            sync(final.parent)
        finally:
            for left in (building, aside):
                shutil.rmtree(left, ignore_errors=True)


def _put(building: Path, final: Path, aside: Path) -> None:
    try:
        building.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, each with a name that stays."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync_files(folder: Path) -> None:
    """Make each file of a new folder reach the disk, as readable as the umask says.

    Some libraries write through temporary files of mode 0600; the folder itself was made under the
    umask, which can be read only by changing it for all threads.
    """
    mode = folder.stat().st_mode & 0o666
    for path in sorted(folder.iterdir()):
        if path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
        sync(path)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained(path: Path, needed: int = 0) -> Iterator[None]:
    """What keeps the block from writing `path`, as an error that says what would help."""
    try:
        yield
    except OSError as problem:
        raise cannot_write(path, problem, needed) from problem


def cannot_write(path: Path, problem: OSError, needed: int = 0) -> WriteError:
    """The error to raise for a failure to write `needed` bytes at `path`."""
    reason = (problem.strerror or str(problem)).lower()
    if problem.errno not in FULL:
        return WriteError(
            f"cannot write `{path}`: {reason}",
            hint="make it writable and give the same command again, or give another `--out DIR`",
        )
    sizes = f"{show_bytes(needed)} needed, {show_bytes(free_bytes(path))} free"
    return WriteError(
        f"cannot write `{path}`: {reason}; {sizes}",
        hint="make room, then give the same command again: it goes on where it stopped",
    )


def free_bytes(path: Path) -> int:
    """Free space of the disk that `path` is on, or would be on."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _beside(final: Path) -> Path:
    """A new name beside `final`, with the ending that marks what is not finished."""
    return final.with_name(f"{final.name}.tmp-{uuid.uuid4().hex[:8]}")
