"""Read files that may be absent, cut short or odd, without ever failing on one of them.

A report is wanted most after a run that went wrong, so nothing here raises: what cannot be read
is `None` or empty, and the reader is told why. Text is made safe to print and to encode; it is not
made safe for HTML, which is the business of the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

Loose = Mapping[str, object]
"""A JSON object of which nothing is taken for granted."""

_DEEPEST = 16
_LARGEST = 1e100

_LONGEST_LABEL = 200

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(value: str) -> str:
    """The text with line ends unified, control characters made visible and lone surrogates gone."""
    return _UNPRINTABLE.sub(_picture, value.replace("\r\n", "\n"))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def text(value: object) -> str | None:
    """The string, or a number as a string; `None` for anything else."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return None


def label(value: object) -> str:
    """A name or a place in a file, which is never long; empty for what is neither."""
    return (text(value) or "")[:_LONGEST_LABEL]


def number(value: object) -> float | None:
    """The number, if it is finite and of a size that anything measured has; else `None`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) < _LARGEST:  # NaN as well
        return None
    return float(value) if abs(value) > 1 / _LARGEST else 0.0


def whole(value: object) -> int | None:
    """The finite number as an integer."""
    found = number(value)
    return None if found is None else int(found)


def numbers(value: object) -> dict[str, float | None]:
    """The numbers of an object by their names; empty for what is none."""
    return {label(name): number(item) for name, item in table(value).items()}


def interval(value: object) -> tuple[float, float] | None:
    """A pair `[low, high]` of finite numbers."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (min(low, high), max(low, high))


def table(value: object) -> Loose:
    """The JSON object, its keys cleaned; empty for anything else."""
    if not isinstance(value, Mapping):
        return {}
    return {label(str(key)): item for key, item in value.items()}


def rows(value: object) -> tuple[Loose, ...]:
    """The JSON objects of a list; empty for anything else."""
    if not isinstance(value, list):
        return ()
    return tuple(table(item) for item in value if isinstance(item, Mapping))


def flat(value: object, prefix: str = "", depth: int = 0) -> dict[str, str]:
    """Every leaf of nested objects by its dotted key, as JSON text (strings without quotes)."""
    if isinstance(value, Mapping) and value and depth < _DEEPEST:
        leaves: dict[str, str] = {}
        for key, item in value.items():
            name = label(str(key))
            leaves |= flat(item, f"{prefix}.{name}" if prefix else name, depth + 1)
        return leaves
    return {prefix: clean(value if isinstance(value, str) else _dumped(value))} if prefix else {}


def _dumped(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "\u2026"


@dataclass(frozen=True, slots=True)
class Found:
    """What a file holds, or why it could not be read."""

    value: object
    problem: str | None


def _parse(source: str) -> object:
    return json.loads(source, parse_constant=lambda _: None)


def read_text(path: Path) -> Found:
    """The whole text of a file."""
    try:
        return Found(clean(path.read_text(encoding="utf-8", errors="replace")), None)
    except FileNotFoundError:
        return Found(None, "is missing")
    except OSError as error:
        return Found(None, f"cannot be read: {(error.strerror or 'unknown error').lower()}")


def read_json(path: Path) -> Found:
    """The value of a JSON file."""
    source = read_text(path)
    if source.problem is not None:
        return source
    try:
        return Found(_parse(str(source.value)), None)
    except (ValueError, RecursionError):
        return Found(None, "is not valid JSON")


def read_lines(path: Path) -> Found:
    """The objects of a JSON Lines file; a line that was cut short is counted and left out."""
    source = read_text(path)
    if source.problem is not None:
        return source
    kept: list[object] = []
    damaged = 0
    for line in str(source.value).split("\n"):
        if not line.strip():
            continue
        try:
            kept.append(_parse(line))
        except (ValueError, RecursionError):
            damaged += 1
    lines = "line" if damaged == 1 else "lines"
    return Found(kept, f"has {damaged:,} unreadable {lines}" if damaged else None)
