"""Every error a user can cause, what it says, and the exit code it ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class PeftkitError(Exception):
    """A problem the user can fix, shown as `error:` and `hint:`, never as a traceback.

    Anything else that escapes is a bug in peftkit, and keeps its traceback.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, problems: Sequence[str] = (), hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)
        self.hint = hint

    def __str__(self) -> str:
        """The message, then one indented line a problem."""
        return "\n".join([self.message, *(f"  {problem}" for problem in self.problems)])


class RunError(PeftkitError):
    """The run itself failed: diverged, or ran into something it could not go on from."""


class RecipeError(PeftkitError):
    """The recipe or the command line does not say what it must, or says what it cannot."""

    exit_code = 2


class InputError(PeftkitError):
    """Data, adapter or base refused: bad rows, hostile or damaged files."""

    exit_code = 65


class WriteError(PeftkitError):
    """Nothing could be written where the run wants to write."""

    exit_code = 74


class BusyError(PeftkitError):
    """The run folder is in use by a live run."""

    exit_code = 75


class Stopped(PeftkitError):  # noqa: N818 - a request that was obeyed, not an error of anyone's
    """The run was asked to stop, and saved first."""

    def __init__(self, message: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number
