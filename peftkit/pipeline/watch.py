"""What a run tells while it goes on: a protocol the command line fills, and a silent default."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Told after every step."""

    def __call__(self, step: int, **figures: float) -> None:
        """Show `step` and the figures that go with it."""


class Watch(Protocol):
    """Whoever looks on while a run goes."""

    def say(self, line: str) -> None:
        """Show one line."""

    def progress(self, total: int, description: str) -> AbstractContextManager[Progress]:
        """Show how far `total` steps have come."""


class Silent:
    """Nobody looks on."""

    def say(self, line: str) -> None:
        """Say nothing."""

    def progress(self, total: int, description: str) -> AbstractContextManager[Progress]:
        """Show nothing."""
        del total, description
        return nullcontext(_ignore)


def _ignore(step: int, **figures: float) -> None:
    del step, figures
