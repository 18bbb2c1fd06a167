"""Ctrl-C, SIGTERM and SIGHUP: save at the step in hand and stop; a second one stops at once."""

from __future__ import annotations

import errno
import os
import signal
import termios
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Unwinds what is in hand; being no `Exception`, no library swallows it as a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(slots=True)
class Requests:
    """Whether someone asked the run to stop, and whether it can stop right here."""

    number: int = 0
    waits: bool = False
    """True while something is in hand that is to be finished first."""

    def note(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal."""
        del frame
        if self.number:
            os._exit(128 + number)
        if number == signal.SIGHUP:
            _forget_terminal()
        self.number = number

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal; stop at once where there is nothing to finish."""
        self.note(number, frame)
        if not self.waits:
            raise Interrupted(number)

    @contextmanager
    def deferred(self, done: str) -> Iterator[None]:
        """Inside, a signal waits; the run stops after the block, saying what is `done`."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False
        if self.number:
            raise stopped(self.number, done)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`, a block that a signal cuts short by `Interrupted`."""
        self.waits = False
        try:
            if self.number:
                raise Interrupted(self.number)
            yield
        finally:
            self.waits = True


@contextmanager
def listen() -> Iterator[Requests]:
    """Signals as requests, for the length of a run; the earlier handlers come back after it."""
    requests = Requests()
    try:
        with handling(requests.hear):
            yield requests
    except Interrupted as heard:
        what = "nothing was in progress that needed saving"
        raise stopped(heard.number, what) from None


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    """Inside, the signals that ask a run to stop go to `handler`; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    earlier: dict[signal.Signals, Any] = {}
    try:
        for number in HEARD:
            earlier[number] = signal.signal(number, handler)
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


def _forget_terminal() -> None:
    """Send to nowhere what goes to a terminal that is no more: each write there is an error."""
    for stream in (0, 1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as problem:
            if problem.args[0] == errno.EIO:  # not, as of a file, that it is no terminal
                os.dup2(os.open(os.devnull, os.O_RDWR), stream)


def stopped(number: int, what: str) -> Stopped:
    """The end of a run that was asked to stop."""
    name = signal.Signals(number).name
    return Stopped(
        f"stopped by {name}: {what}",
        signal_number=number,
        hint="the same command goes on from here",
    )
