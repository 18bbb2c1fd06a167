"""What rows say in the columns that they are held out by, as text and as instants."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from peftkit.data.draft import UnusableError
from peftkit.data.example import LONE_SURROGATE
from peftkit.errors import InputError

if TYPE_CHECKING:
    from peftkit.data.rows import Row


def refuse_missing(row: Row, names: tuple[str, ...]) -> None:
    """Say that the recipe is wrong where the first row that fits lacks a column.

    Raises:
        InputError: it does.
    """
    if why := _lack(row, names):
        hint = "name one of these in `by`: `group:<column>` or `time:<column>`"
        raise InputError(f"{row.where}: {why}", hint=hint)


def keep_columns(row: Row, names: tuple[str, ...]) -> tuple[str, ...]:
    """The row's values in these columns, as text.

    Raises:
        UnusableError: the row has no such column, or nothing stands in it.
    """
    if why := _lack(row, names):
        raise UnusableError(why)
    return tuple(_text_of(row, name) for name in names)


def _lack(row: Row, names: tuple[str, ...]) -> str:
    missing = next((name for name in names if name not in row.values), None)
    has = ", ".join(f"`{name}`" for name in row.values)
    return f"no column `{missing}` to hold rows out by; the row has {has}" if missing else ""


def _text_of(row: Row, name: str) -> str:
    value = row.values[name]
    if isinstance(value, date):  # a column of a parquet file; `datetime` is one, too
        return value.isoformat()
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    if value is None or not text.strip():
        raise UnusableError(f"column `{name}`, which rows are held out by, is empty")
    if LONE_SURROGATE.search(text):
        raise UnusableError(f"column `{name}` holds half a character")
    return text.strip()


def instant_of(text: str) -> tuple[str, float] | None:
    """`number` or `date`, and the value to sort by; None for what is neither.

    A time without a zone is taken as UTC, and a date as its first moment.
    """
    try:
        value = float(text)
    except ValueError:
        return _date_of(text)
    return ("number", value) if math.isfinite(value) else None


def _date_of(text: str) -> tuple[str, float] | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    zoned = found if found.tzinfo else found.replace(tzinfo=UTC)
    return "date", (zoned - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
