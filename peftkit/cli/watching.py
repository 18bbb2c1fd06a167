"""What a person at the command line sees of a run while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.cli import output

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from peftkit.cli.output import Update


@dataclass(frozen=True, slots=True)
class Terminal:
    """Lines and progress on stderr, or nothing at all."""

    quiet: bool = False

    def say(self, line: str) -> None:
        """Show one line."""
        output.say(line, quiet=self.quiet)

    def progress(self, total: int, description: str) -> AbstractContextManager[Update]:
        """Show how far `total` steps have come."""
        return output.progress(total, description, quiet=self.quiet)
