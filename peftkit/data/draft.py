"""A row's tokens before the length policy, and what every format reads its columns with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.data.example import LONE_SURROGATE

if TYPE_CHECKING:
    from peftkit.data.rows import Row


@dataclass(frozen=True, slots=True)
class Encoder:
    """A tokenizer, the ids that end an answer, the length policy, and the task of the base."""

    tokenizer: Any
    stops: frozenset[int]
    max_length: int
    too_long: str
    task: str = "causal-lm"
    labels: tuple[str, ...] = ()
    """The only ones a row may have; empty while any may come."""
    columns: tuple[str, ...] = ()
    """Whose values every example keeps, because rows are held out by them."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, with the tokenizer's own additions only if asked for."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        return ids


class UnusableError(ValueError):
    """A row that has the columns but not the content."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens of one row before the length policy."""

    ids: list[int]
    trained: list[bool]
    text: str
    prompt_tokens: int = 0
    prompt: str = ""
    answer: str | None = None
    plain: bool = False
    """Whether a long one is cut into pieces, of which none is lost."""
    parts: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    cut: int = 0
    """Tokens that were taken off already; what reads the row knew how."""
    over: int = 0
    """Tokens above what is allowed, where the row is not to be cut."""


def words(row: Row, column: str, *, may_be_empty: bool = False) -> str:
    """The text of a column.

    Raises:
        UnusableError: it holds no text, or text that no tokenizer takes.
    """
    value = row.values.get(column, "")
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise UnusableError(f"column `{column}`: expected text, got `{str(value)[:40]}`")
    if not value.strip() and not may_be_empty:
        raise UnusableError(f"column `{column}` is empty")
    if half := LONE_SURROGATE.search(value):
        raise UnusableError(f"column `{column}` holds half a character (U+{ord(half[0]):04X})")
    return value
