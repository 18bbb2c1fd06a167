"""A row as it was read, with its file and line, and the account of rows that were not taken."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from peftkit.errors import InputError

SHOWN = 20
"""Bad rows named in one message; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record as read, and where it stands."""

    values: dict[str, Any]
    where: str

    @property
    def digest(self) -> str:
        """Sha256 of the record's content, whatever file it stands in."""
        text = json.dumps(self.values, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that could not be used, and why."""

    where: str
    why: str


@dataclass(slots=True)
class Intake:
    """What became of the rows of one data set that were not taken, told all at once."""

    policy: str
    found: list[Bad] = field(default_factory=list)
    dropped: list[Bad] = field(default_factory=list)
    blank: int = 0
    """Lines with nothing on them, which are no rows."""

    @property
    def refusing(self) -> bool:
        """Whether the data will be refused once all of it is read."""
        return bool(self.found) and self.policy != "skip"

    def refuse(self, where: str, why: str) -> None:
        """Remember one bad row."""
        self.found.append(Bad(where, why))

    def drop(self, where: str, why: str) -> None:
        """Remember one row that the recipe leaves out."""
        self.dropped.append(Bad(where, why))

    def settle(self, what: str) -> None:
        """Refuse the data if there were bad rows and the recipe does not skip them."""
        if not self.refusing:
            return
        shown = [f"{bad.where}: {bad.why}" for bad in self.found[:SHOWN]]
        if len(self.found) > SHOWN:
            shown.append(f"… and {len(self.found) - SHOWN} more")
        foreign = all(bad.why.startswith("not UTF-8") for bad in self.found)
        mend = "`iconv -f latin1 -t utf-8 FILE` converts Latin-1" if foreign else "mend them"
        raise InputError(
            f"{len(self.found)} bad {'row' if len(self.found) == 1 else 'rows'} in the {what} data",
            problems=shown,
            hint=f"{mend}, or `data.bad_rows: skip` leaves them out and lists each one",
        )
