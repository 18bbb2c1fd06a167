"""Tensors of a model's files, read by rows from where they lie: no file is mapped, none is held.

What is mapped counts as memory once it was touched, and reading into one small buffer is as fast:
the numbers are still in the processor's cache when they are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from peftkit.base.locate import weight_files
from peftkit.disk.weights_header import DamagedFileError, read_header
from peftkit.errors import InputError

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from torch import Tensor

    from peftkit.base.locate import Origin

FLOATS = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Formats of numbers that can be added up."""
EIGHT_BITS = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is, and what it looks like."""

    path: Path
    first: int
    """Its first byte in the file."""
    format: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def columns(self) -> int:
        """The length of a row: of the last dimension."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """How many rows there are: a vector is one."""
        return math.prod(self.shape[:-1])


class TensorFiles:
    """A model's tensors by name; its files stay open until the block ends.

    Raises:
        InputError: a file is damaged, or two files hold one tensor.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.places: dict[str, Place] = {}
        self._open: dict[Path, FileIO] = {}
        self._raw: dict[torch.dtype, Tensor] = {}
        for path in weight_files(origin):
            for name, place in _places(path):
                if name in self.places:
                    raise InputError(f"`{origin.name}` holds `{name}` in two files")
                self.places[name] = place

    def __enter__(self) -> Self:
        """Open files are closed when the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close them."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    @property
    def paths(self) -> list[Path]:
        """The files, in name order."""
        return sorted({place.path for place in self.places.values()})

    @property
    def bytes(self) -> int:
        """What all tensors take."""
        return sum(place.bytes for place in self.places.values())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor, in a buffer that the next call fills again."""
        place = self.places[name]
        raw = self._buffer(FLOATS[place.format], (stop - start) * place.columns)
        width = raw.element_size() * place.columns
        self._fill(place, place.first + start * width, raw)
        return raw.view(stop - start, place.columns)

    def pick(self, name: str, rows: Tensor) -> Tensor:
        """Rows of a tensor by number, in the order given."""
        place = self.places[name]
        found = torch.empty(len(rows), place.columns, dtype=FLOATS[place.format])
        width = found.element_size() * place.columns
        for row, number in zip(found, rows.tolist(), strict=True):
            self._fill(place, place.first + number * width, row)
        return found

    def raw(self, name: str, start: int, stop: int) -> Tensor:
        """Bytes of a tensor of any format, in a buffer that the next call fills again."""
        place = self.places[name]
        found = self._buffer(torch.uint8, stop - start)
        self._fill(place, place.first + start, found)
        return found

    def _buffer(self, dtype: torch.dtype, size: int) -> Tensor:
        there = self._raw.get(dtype)
        if there is None or there.numel() < size:
            there = self._raw[dtype] = torch.empty(size, dtype=dtype)
        return there[:size]

    def _fill(self, place: Place, position: int, into: Tensor) -> None:
        if (file := self._open.get(place.path)) is None:
            file = self._open[place.path] = place.path.open("rb", buffering=0)
        view = memoryview(into.view(torch.uint8).numpy())  # type: ignore[arg-type]
        file.seek(position)
        while view:
            count = file.readinto(view)
            if not count:
                raise InputError(f"`{place.path}` became shorter while it was read")
            view = view[count:]


def _places(path: Path) -> list[tuple[str, Place]]:
    try:
        entries = read_header(path)
    except DamagedFileError as problem:
        raise InputError(f"`{path}` is damaged: {problem}") from None
    begin = 8 + header_bytes(path)
    return [
        (name, Place(path, begin + each.start, each.dtype, each.shape, each.end - each.start))
        for name, each in entries.items()
    ]


def header_bytes(path: Path) -> int:
    """How long the header of a file is."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")
