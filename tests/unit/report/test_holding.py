"""One live process has a folder: with the system's lock, and where a file system has none."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peftkit.errors import BusyError, WriteError
from peftkit.report.holding import hold

NO_LOCKS = """
import errno, fcntl
def flock(handle, how):
    raise OSError(errno.ENOSYS, "function not implemented")
fcntl.flock = flock
"""
HOLDER = """
import os, sys, time
from pathlib import Path
from peftkit.report.holding import hold
with hold(Path(sys.argv[1])):
    {inside}
    print("held", os.getpid(), flush=True)
    sys.stdin.read()
"""
FORK = """begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(begin, b".")
        time.sleep(600)
    os.read(begun, 1)
    print(child, flush=True)"""
"""A child that has begun, and so let go of the folder, before its parent goes on."""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def begin(prefix: str = "", inside: str = "pass") -> subprocess.Popen[str]:
        script = prefix + HOLDER.format(inside=inside)
        return subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "run")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("prefix", ["", NO_LOCKS], ids=["flock", "no flock"])
def test_the_holder_is_named_and_a_dead_one_forgotten(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    if prefix:
        without_locks(monkeypatch)
    holder = start(prefix)
    assert said(holder) == f"held {holder.pid}\n"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with pytest.raises(BusyError) as caught, hold(tmp_path / "run"):
        pass
    assert f"(pid {holder.pid} on {socket.gethostname()}, boot {boot})" in str(caught.value)
    assert caught.value.exit_code == 75
    holder.kill()
    holder.communicate()
    for _ in range(2):
        with hold(tmp_path / "run") as run:
            assert run.path == tmp_path / "run"


@pytest.mark.parametrize("prefix", ["", NO_LOCKS], ids=["flock", "no flock"])
def test_one_of_many_has_it(start: Start, prefix: str) -> None:
    holders = [start(prefix) for _ in range(8)]
    first = [said(holder) for holder in holders]
    told = [holder.communicate()[1] for holder in holders]
    assert sum(line.startswith("held") for line in first) == 1
    assert sum("BusyError" in text for text in told) == 7


def test_a_forked_child_does_not_keep_it(start: Start, tmp_path: Path) -> None:
    """A data worker may outlive the run that forked it."""
    holder = start(inside=FORK)
    pid = int(said(holder))
    said(holder)
    holder.kill()
    holder.wait()
    os.kill(pid, 0)  # it lives, and holds nothing
    with hold(tmp_path / "run"):
        os.kill(pid, signal.SIGKILL)
    holder.communicate()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"host": "elsewhere"},
        {"host": "elsewhere", "boot": "another"},
        {"processes": "pid:[1]"},
    ],
)
def test_without_locks_who_may_live_is_left_alone(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    """What runs on another machine, or in a container of the same name, cannot be looked up."""
    without_locks(monkeypatch)
    holder = start(NO_LOCKS)
    said(holder)
    rewrite(tmp_path / "run/.lock-000001", change)
    with pytest.raises(BusyError), hold(tmp_path / "run"):
        pass
    holder.communicate()


@pytest.mark.parametrize("change", [{"boot": "another"}, {"started": "1"}, {"pid": 2**22 + 1}])
def test_without_locks_who_is_surely_gone_is_followed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    """A process that has got the same number since is not the one that wrote the claim."""
    without_locks(monkeypatch)
    holder = start(NO_LOCKS)
    said(holder)
    rewrite(tmp_path / "run/.lock-000001", change)
    with hold(tmp_path / "run"):
        assert (tmp_path / "run/.lock-000002").read_text()
    holder.communicate()


def rewrite(claim: Path, change: dict[str, object]) -> None:
    claim.write_text(json.dumps(json.loads(claim.read_text()) | change))


def test_without_locks_few_claims_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    for _ in range(5):
        with hold(tmp_path):
            pass
    assert sorted(path.name for path in tmp_path.glob(".lock-*")) == [
        ".lock-000004",
        ".lock-000005",
    ]


def test_leftovers_are_swept_by_whoever_has_the_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step-000005.tmp-12345678").mkdir(parents=True)
    (tmp_path / "steps.jsonl.tmp-12345678").write_text("half")
    with hold(tmp_path):
        assert list(tmp_path.rglob("*.tmp-*")) == []


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(WriteError, match="is a file"), hold(tmp_path / "run"):
        pass
    with pytest.raises(WriteError, match="not a directory"), hold(tmp_path / "run/deeper"):
        pass
    (tmp_path / "other/.lock").mkdir(parents=True)
    with pytest.raises(WriteError, match="is a directory"), hold(tmp_path / "other"):
        pass


def test_no_torch_is_imported_before_the_folder_is_held(start: Start) -> None:
    holder = start(inside="print([n for n in ('torch', 'numpy') if n in sys.modules], flush=True)")
    assert said(holder) == "[]\n"
    holder.communicate()
