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


def keep_columns(row: Row, names: tuple[str, ...], *, first: bool) -> tuple[str, ...]:
    """The row's values in these columns, as text.

    Raises:
        InputError: the `first` row has no such column: the recipe is wrong, not the row.
        UnusableError: it has none, or nothing stands in it.
    """
    missing = next((name for name in names if name not in row.values), None)
    if missing is not None:
        has = ", ".join(f"`{name}`" for name in row.values)
        why = f"no column `{missing}` to hold rows out by; the row has {has}"
        if first:
            hint = "name one of these in `by`: `group:<column>` or `time:<column>`"
            raise InputError(f"{row.where}: {why}", hint=hint)
        raise UnusableError(why)
    return tuple(_text_of(row, name) for name in names)


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
