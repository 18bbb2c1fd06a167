"""A model's files written again, block by block: sums are rounded once, and the loss is measured.

The header of a file is copied as it is where no shape changes. What rounding loses matters: a
change of a percent of a weight keeps about four fifths of itself in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from peftkit.base.locate import DEFINING
from peftkit.disk.weights_header import DamagedFileError, read_header
from peftkit.errors import RunError
from peftkit.merge.row_changes import Scratch
from peftkit.merge.tensor_files import FLOATS, header_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from torch import Tensor

    from peftkit.merge.row_changes import BaseRows, Fill
    from peftkit.merge.tensor_files import Place, TensorFiles

MERGE_FILE = "merge.json"
"""What a result is made of, and what that cost."""
BLOCK = 1 << 16
"""Entries of a block: a few of them in float32 fit into a processor's own cache."""
PIECE = 1 << 20
"""Bytes that are copied at once."""


@dataclass(frozen=True, slots=True)
class Finish:
    """What is said beside the weights of a result, and how much of it rounding may take."""

    note: Mapping[str, Any] | None = None
    """What `merge.json` says besides, where the result is a merge."""
    fail_above: float = math.inf
    """The share of the change that rounding may take."""


PLAIN = Finish()
"""Nothing is said, and rounding may take what it takes."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """What became of one tensor."""

    size: float
    """The norm of what was to be added."""
    gone: float
    """The norm of what rounding took from it."""
    moved: bool
    """Whether any number is another one now."""


@dataclass(frozen=True, slots=True)
class Written:
    """A model's files, and what became of the tensors that were to change."""

    digests: dict[str, str]
    """By file: its sha256."""
    tensors: dict[str, Rounded]

    @property
    def lost(self) -> dict[str, float]:
        """By tensor: the norm of what rounding took, by that of the change."""
        return {n: each.gone / each.size if each.size else 0.0 for n, each in self.tensors.items()}

    @property
    def relative(self) -> float:
        """The same of all together."""
        size = math.hypot(*(each.size for each in self.tensors.values()))
        gone = math.hypot(*(each.gone for each in self.tensors.values()))
        return gone / size if size else 0.0


def write_model(
    files: TensorFiles,
    base: BaseRows,
    changes: Mapping[str, Callable[[], Fill]],
    folder: Path,
) -> Written:
    """Write the files of a base with changes, and copy what lies beside them.

    Args:
        files: of the base.
        base: its rows.
        changes: by tensor: begins with it, and gives what fills in its change.
        folder: where to; it is empty.

    Raises:
        RunError: nothing would change, a number would not be finite, or a file was not written
            as it should be.
    """
    digests, tensors = {}, {}
    for path in files.paths:
        target = folder / path.name
        names = sorted(
            (name for name, place in files.places.items() if place.path == path),
            key=lambda name: (files.places[name].first, files.places[name].bytes),
        )
        with target.open("wb") as plain:
            file = _Hashing(plain)
            file.write(_header(path, names, base))
            for name in names:
                if name in changes:
                    tensors[name] = _write_changed(file, name, base, changes[name]())
                else:
                    _copy(file, files, name)
        digests[path.name] = file.digest.hexdigest()
        _check(target, base, names)
    for path in beside(files.origin.folder):
        shutil.copyfile(path, folder / path.name)
    _grow_index(folder, sum(base.place(n).bytes - place.bytes for n, place in files.places.items()))
    written = Written(digests, tensors)
    if not any(each.moved for each in tensors.values()):
        raise RunError(
            "the result would be the base itself: the change is nothing, or rounded away",
            hint="keep it as an adapter, which rounds nothing away: `peftkit merge`",
        )
    return written


def refuse_lossy(written: Written, fail_above: float) -> None:
    """Say where rounding took more of the change than it may.

    Raises:
        RunError: it did; whoever writes to a folder of its own takes it back.
    """
    if written.relative > fail_above:
        raise RunError(
            f"rounding would take {written.relative:.3f} of the change, more than {fail_above:g}: "
            "nothing was written",
            hint="keep it as an adapter, which rounds nothing away: `--set output.as=adapter`",
        )


def spans(rows: int, columns: int, entries: int = BLOCK) -> Iterator[tuple[int, int]]:
    """The first row of each block, and the first after it."""
    step = max(1, entries // max(1, columns))
    for start in range(0, rows if columns else 0, step):
        yield start, min(start + step, rows)


def beside(folder: Path) -> list[Path]:
    """What makes a model of weights: configuration, tokenizer, index."""
    kinds = (*DEFINING, "*.safetensors.index.json", "README.md", "LICENSE*")
    found = {path for kind in kinds for path in folder.glob(kind) if path.is_file()}
    return sorted(path for path in found if path.suffix != ".safetensors")


class _Hashing:
    """A file whose digest is known when it is written: its bytes are in the cache only once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self.digest.update(content)


def _write_changed(file: _Hashing, name: str, base: BaseRows, fill: Fill) -> Rounded:
    """One tensor with its change; what rounding takes is what the stored sum lacks."""
    place = base.place(name)
    stored = FLOATS[place.format]
    wanted, exact, rounded = Scratch(base.dtype), Scratch(base.dtype), Scratch(stored)
    size = gone = 0.0
    moved = False
    for start, stop in spans(place.rows, place.columns):
        shape = (stop - start, place.columns)
        change, back, after = wanted.take(shape), exact.take(shape), rounded.take(shape)
        fill(start, stop, change)
        size += _square(change)
        before = base.read(name, start, stop)
        change += before
        after.copy_(change)
        back.copy_(after)
        moved = moved or not torch.equal(back, before)
        back -= change
        gone += _square(back)
        file.write(memoryview(after.view(torch.uint8).numpy()).cast("B"))  # type: ignore[arg-type]
    if not math.isfinite(gone) or not math.isfinite(size):
        raise RunError(f"`{name}` would not be finite: nothing was written")
    return Rounded(math.sqrt(size), math.sqrt(gone), moved)


def _square(values: Tensor) -> float:
    flat = values.flatten()
    return float(torch.dot(flat, flat))


def _copy(file: _Hashing, files: TensorFiles, name: str) -> None:
    size = files.places[name].bytes
    for start in range(0, size, PIECE):
        piece = files.raw(name, start, min(start + PIECE, size))
        file.write(memoryview(piece.numpy()))  # type: ignore[arg-type]


def _header(path: Path, names: Sequence[str], base: BaseRows) -> bytes:
    """The header of a file as it is, or with other shapes where some tensors grew."""
    with path.open("rb") as file:
        raw = file.read(8 + header_bytes(path))
    if all(base.place(name).shape == base.files.places[name].shape for name in names):
        return raw
    fields, position = json.loads(raw[8:]), 0
    for name in names:
        place = base.place(name)
        fields[name]["shape"] = list(place.shape)
        fields[name]["data_offsets"] = [position, position + place.bytes]
        position += place.bytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text


def _grow_index(folder: Path, more: int) -> None:
    """Let the index of several files say what they take, where some tensors grew."""
    for path in folder.glob("*.safetensors.index.json") if more else ():
        said = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(size := said.get("metadata", {}).get("total_size"), int):
            said["metadata"]["total_size"] = size + more
            path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _check(path: Path, base: BaseRows, names: Sequence[str]) -> None:
    """Read the header of what was written: names, shapes, formats and the file's size.

    Raises:
        RunError: they are not what they should be.
    """
    try:
        found = {name: (each.dtype, each.shape) for name, each in read_header(path).items()}
    except DamagedFileError as problem:
        raise RunError(f"`{path.name}` was not written as it should be: {problem}") from None
    places: dict[str, Place] = {name: base.place(name) for name in names}
    if found != {name: (each.format, each.shape) for name, each in places.items()}:
        raise RunError(f"`{path.name}` was not written as it should be: other tensors")
