"""Stop a process at each change it makes to files, as the kernel sees them, by `ptrace`.

Changes that Rust or C make count as those of Python do; no shim could see them all.
"""

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TRACEME, SYSCALL, SETOPTIONS, SYSCALL_INFO = 0, 24, 0x4200, 0x420E
MARK_SYSCALLS, KILL_WITH_TRACER = 1, 0x100000
ENTRY = 1
CALLS = {
    "x86_64": "write 1, open 2, pwrite 18, fsync 74, fsync 75, truncate 76, ftruncate 77, "
    "rename 82, mkdir 83, rmdir 84, creat 85, link 86, unlink 87, chmod 90, fchmod 91, "
    "openat 257, mkdirat 258, unlinkat 263, renameat 264, linkat 265, fchmodat 268, "
    "fallocate 285, renameat 316, fchmodat 452",
    "aarch64": "mkdirat 34, unlinkat 35, linkat 37, renameat 38, truncate 45, ftruncate 46, "
    "fallocate 47, fchmod 52, fchmodat 53, openat 56, write 64, pwrite 68, fsync 82, fsync 83, "
    "renameat 276, fchmodat 452",
}
"""System calls that change files, and their numbers (fdatasync is as good as fsync here)."""
NUMBERS = {
    machine: {int(number): name for name, number in map(str.split, calls.split(", "))}
    for machine, calls in CALLS.items()
}
BY_HANDLE = {"write", "pwrite", "fsync", "ftruncate", "fchmod", "fallocate"}
TWO_PATHS = {"rename", "renameat", "link", "linkat"}

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Change:
    """One operation on a file, with the paths it names."""

    name: str
    paths: tuple[str, ...]


@dataclass
class Trace:
    """What a process changed up to the point where it ended or was killed."""

    changes: list[Change] = field(default_factory=list)
    killed: bool = False

    @property
    def unsynced(self) -> set[str]:
        """Files, by their last name, with content that a power cut would take."""
        found: set[str] = set()
        for change in self.changes:
            if change.name in ("write", "pwrite", "truncate", "ftruncate"):
                found.add(change.paths[0])
            elif change.name == "fsync":
                found.discard(change.paths[0])
            elif change.name in ("rename", "renameat"):
                old, new = change.paths
                moved = {path for path in found if f"{path}/".startswith(f"{old}/")}
                found = (found - moved) | {new + path.removeprefix(old) for path in moved}
        return found


def supported() -> str | None:
    """Why nothing can be traced here, or None where it can."""
    if platform.machine() not in NUMBERS:
        return f"the numbers of system calls on {platform.machine()} are not known here"
    trace = traced(lambda: os.close(os.open(os.devnull, os.O_WRONLY | os.O_CREAT)))
    return None if trace.changes else "this machine lets no process trace another"


def traced(work: Callable[[], object], root: Path = Path("/"), kill_after: int = 0) -> Trace:
    """What `work` changes under `root`, done in a child that dies after so many changes."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            libc.ptrace(TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
        finally:
            os._exit(code)
    os.waitpid(pid, 0)
    libc.ptrace(SETOPTIONS, pid, None, ctypes.c_void_p(MARK_SYSCALLS | KILL_WITH_TRACER))
    trace = Trace()
    for change in _changes(pid, str(root)):
        trace.changes.append(change)
        if len(trace.changes) == kill_after:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            trace.killed = True
            break
    return trace


def _changes(pid: int, root: str) -> Iterator[Change]:
    """Each change once it has been made."""
    pending: Change | None = None
    deliver = 0
    while True:
        libc.ptrace(SYSCALL, pid, None, ctypes.c_void_p(deliver))
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return
        stop = os.WSTOPSIG(status)
        deliver = 0
        if stop != signal.SIGTRAP | 0x80:
            deliver = stop
            continue
        entry = _read_call(pid)
        if entry is not None:
            pending = entry if any(path.startswith(root) for path in entry.paths) else None
        elif pending is not None:
            yield pending
            pending = None


def _read_call(pid: int) -> Change | None:
    """The change that a process is about to make; None where it comes back from one."""
    room = ctypes.create_string_buffer(88)
    libc.ptrace(SYSCALL_INFO, pid, ctypes.c_void_p(len(room)), room)
    if room.raw[0] != ENTRY:
        return None
    number, *arguments = struct.unpack_from("<7Q", room.raw, 24)
    name = NUMBERS[platform.machine()].get(number, "")
    if name in BY_HANDLE:
        return Change(name, (_of_handle(pid, arguments[0]),))
    at = name.endswith("at")
    flags = arguments[2 if at else 1] if name.startswith("open") else os.O_CREAT
    if not name or not flags & (os.O_CREAT | os.O_TRUNC):
        return Change("", ())
    paths = [_named(pid, arguments[0] if at else None, arguments[1 if at else 0])]
    if name in TWO_PATHS:
        paths.append(_named(pid, arguments[2] if at else None, arguments[3 if at else 1]))
    return Change(name, tuple(paths))


def _of_handle(pid: int, handle: int) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/fd/{handle}").readlink())
    return ""


def _named(pid: int, folder: int | None, address: int) -> str:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        text = memory.read(256)
        while b"\0" not in text:
            text += memory.read(256)
    path = os.fsdecode(text[: text.index(b"\0")])
    if path.startswith("/"):
        return path
    here = folder is None or ctypes.c_int(folder & 0xFFFFFFFF).value == -100
    start = Path(f"/proc/{pid}/cwd").readlink() if here else _of_handle(pid, int(folder or 0))
    return f"{start}/{path}"
