"""Ctrl-C, SIGTERM and SIGHUP: save at the step in hand and stop; a second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Requests:
    """Whether someone asked the run to stop, and whether it can stop right here."""

    number: int = 0
    between_steps: bool = False
    """True while steps are taken: the step in hand is finished and saved first."""

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal; stop at once where there is nothing to save."""
        del frame
        if self.number:
            os._exit(128 + number)
        self.number = number
        if not self.between_steps:
            raise stopped(number, "nothing was in progress that needed saving")


@contextmanager
def listen() -> Iterator[Requests]:
    """Signals as requests, for the length of a run; the earlier handlers come back after it."""
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests  # only the main thread may handle signals
        return
    earlier = {number: signal.signal(number, requests.hear) for number in HEARD}
    try:
        yield requests
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def stopped(number: int, what: str) -> Stopped:
    """The end of a run that was asked to stop."""
    name = signal.Signals(number).name
    return Stopped(
        f"stopped by {name}: {what}",
        signal_number=number,
        hint="the same command goes on from here",
    )
