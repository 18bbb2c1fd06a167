"""Reads the header of a safetensors file without touching, or trusting, the numbers behind it.

`safetensors` itself checks the same layout, but only while it maps the whole file; here the
names, shapes and number formats are known before a byte of a tensor is read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_HEADER = 100 * 1024 * 1024
MOST_DIMENSIONS = 8
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
OTHER_BYTES = {
    "BOOL": 1,
    "I8": 1,
    "U8": 1,
    "I16": 2,
    "U16": 2,
    "I32": 4,
    "U32": 4,
    "I64": 8,
    "U64": 8,
}


class DamagedFileError(ValueError):
    """The file is not what its name says; the message says where it stops making sense."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a header says about one tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor the file claims to hold, by name, once the claims agree with its size.

    Raises:
        DamagedFileError: the header is too long, is not JSON, or contradicts itself or the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LONGEST_HEADER, size - 8):
            raise DamagedFileError(
                f"{path.name}: cut short or not safetensors: {size} bytes, a header of {length}"
            )
        raw = file.read(length)
    fields = parse_json(raw, f"header of {path.name}")
    fields.pop("__metadata__", None)
    entries = {name: _entry(name, value) for name, value in fields.items()}
    _no_holes(entries, size - 8 - length, path.name)
    return entries


def parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object in which no key stands twice.

    Raises:
        DamagedFileError: the bytes are anything else.
    """
    try:
        value = json.loads(raw, object_pairs_hook=_without_twins)
    except DamagedFileError as error:
        raise DamagedFileError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DamagedFileError(f"{what}: not JSON ({reason[:120]})") from None
    if not isinstance(value, dict):
        raise DamagedFileError(f"{what}: expected a JSON object, found {type(value).__name__}")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DamagedFileError(f"key `{key[:80]}` is written twice")
        found[key] = value
    return found


def _entry(name: str, value: Any) -> TensorEntry:
    try:
        dtype, shape, (start, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise DamagedFileError(
            f"tensor `{name[:120]}`: expected dtype, shape and data_offsets"
        ) from None
    width = FLOAT_BYTES.get(dtype) or OTHER_BYTES.get(dtype) if isinstance(dtype, str) else None
    if width is None:
        raise DamagedFileError(f"tensor `{name[:120]}`: unknown number format `{str(dtype)[:40]}`")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise DamagedFileError(
            f"tensor `{name[:120]}`: expected at most {MOST_DIMENSIONS} dimensions"
        )
    if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
        raise DamagedFileError(
            f"tensor `{name[:120]}`: sizes and offsets must be whole numbers of at least 0"
        )
    if end - start != width * math.prod(shape):
        raise DamagedFileError(
            f"tensor `{name[:120]}`: {end - start} bytes for {dtype} of shape {shape}"
        )
    return TensorEntry(dtype, tuple(shape), start, end)


def _no_holes(entries: dict[str, TensorEntry], size: int, file: str) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise DamagedFileError(
                f"{file}: tensor `{name[:120]}` starts at {entry.start}, expected {position}"
            )
        position = entry.end
    if position != size:
        raise DamagedFileError(
            f"{file}: {size} bytes of numbers, the header accounts for {position}"
        )
