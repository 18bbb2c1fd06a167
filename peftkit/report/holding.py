"""Who may write a run folder: one live process, on whatever file system, until it ends.

The lock is the operating system's own (`flock`), which lets go when the process ends, however it
ends, so there is nothing stale to reclaim. Where a file system has no such lock, the holder is
named in a numbered file, and the next number may be taken once that process is known to be gone.
A number is taken by one alone, because a file is made under a name only once.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.disk.durable import cannot_write, explained
from peftkit.errors import BusyError, WriteError
from peftkit.report.record import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LOCK = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EACCES)
GLANCES = 250
"""How often, 20 ms apart, a holder is asked for its name that has not written it yet."""

_open_locks: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child must not keep the folder after the run that forked it has ended."""
    for handle in _open_locks:
        os.close(handle)
    _open_locks.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def hold(path: Path) -> Iterator[RunFolder]:
    """The run folder at `path`, made if needed, held against every other live run.

    Raises:
        BusyError: a live run holds it.
        WriteError: nothing can be written there.
    """
    _make_writable(path)
    with explained(path / LOCK, 1024):
        handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _open_locks.add(handle)
    claim = None
    try:
        if not _lock(path, handle):
            claim = _claim(path)
        run = RunFolder(path)
        run.sweep()
        yield run
    finally:
        if claim is not None:
            with suppress(OSError):  # what cannot be written is taken over when this process ends
                claim.write_bytes(b"")
        if handle in _open_locks:  # a forked child has closed its own already
            _open_locks.discard(handle)
            os.close(handle)


def _lock(path: Path, handle: int) -> bool:
    """Whether the operating system gave the lock; False where its file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in HELD:
            raise _busy(path, _glance(path / LOCK)) from None
        return False
    with explained(path / LOCK, 1024):
        os.ftruncate(handle, 0)
        os.pwrite(handle, _own_name(), 0)
    return True


def _claim(path: Path) -> Path:
    """The numbered file that names this process as the holder, where there is no lock to take."""
    claims = sorted(p for p in path.glob(f"{LOCK}-*") if p.name[len(LOCK) + 1 :].isdecimal())
    last = claims[-1] if claims else None
    if last is not None and _may_live(holder := _glance(last, empty_is_free=True)):
        raise _busy(path, holder)
    number = int(last.name.removeprefix(f"{LOCK}-")) + 1 if last is not None else 1
    own = path / f"{LOCK}-{number:06d}"
    written = own.with_name(f"{own.name}.tmp-{os.getpid()}")
    with explained(own, 1024):
        written.write_bytes(_own_name())
        try:
            os.link(written, own)
        except FileExistsError:
            raise _busy(path, _glance(own)) from None
        finally:
            written.unlink()
    for old in claims[:-1]:  # the last one stays, so that whoever looks sees at least one
        old.unlink(missing_ok=True)
    return own


def _may_live(holder: Mapping[str, Any]) -> bool:
    """Whether a holder may be alive: all that is not of this machine, or is running on it."""
    if not holder:
        return False
    own = json.loads(_own_name())
    if holder.get("host") != own["host"]:
        return True
    if holder.get("boot") != own["boot"]:
        return False
    if holder.get("processes") != own["processes"]:
        return True  # a container of the same name, whose processes are not seen from here
    return bool(_started(str(holder.get("pid"))) == holder.get("started"))


def _own_name() -> bytes:
    """What names this process alone, as JSON."""
    name = {
        "pid": os.getpid(),
        "started": _started("self"),
        "host": socket.gethostname(),
        "boot": _first_line(Path("/proc/sys/kernel/random/boot_id")),
        "processes": _target(Path("/proc/self/ns/pid")),
    }
    return json.dumps(name).encode()


def _started(pid: str) -> str:
    """When a process began, in ticks since the start of the machine; empty if it is gone."""
    after_the_name = _first_line(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return after_the_name[19] if len(after_the_name) > 19 else ""


def _first_line(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return ""


def _target(link: Path) -> str:
    with suppress(OSError):
        return str(link.readlink())
    return ""


def _glance(path: Path, *, empty_is_free: bool = False) -> dict[str, Any]:
    """What the holder has written of itself, waiting a little for one that has just begun."""
    for _ in range(GLANCES):
        text = _first_line(path)
        if text or empty_is_free:
            break
        time.sleep(0.02)
    try:
        return dict(json.loads(text or "{}"))
    except (ValueError, TypeError):
        return {}


def _busy(path: Path, holder: Mapping[str, Any]) -> BusyError:
    who = (
        f"pid {holder.get('pid')} on {holder.get('host')}, boot {holder.get('boot')}"
        if holder
        else "a process that has not said its name"
    )
    return BusyError(
        f"`{path}` is in use by a live run ({who})",
        hint="wait for it, stop it, or give this run a folder of its own: `--out DIR`",
    )


def _make_writable(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise WriteError(f"`{path}` is a file; a run needs a folder", hint="`--out DIR`")
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except OSError as problem:
        raise cannot_write(path, problem) from None
