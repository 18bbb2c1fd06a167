"""A fold taken back, bit for bit: what the change cannot tell of the base is kept beside the fold.

The change taken from a folded weight and rounded is nearly always the base's number; where it is
not, the difference of the two as whole numbers is kept, compressed. So that every machine gets the
same guess, the factors of the change are kept as whole numbers too, so small that the sums of their
products are exact in whatever order they are taken.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from peftkit.base.locate import locate
from peftkit.disk.digest import sha256_of
from peftkit.disk.durable import whole_folder
from peftkit.disk.replacing import refuse_to_replace
from peftkit.errors import InputError, RunError
from peftkit.merge.model_files import PIECE, beside, spans
from peftkit.merge.tensor_files import FLOATS, TensorFiles, header_bytes
from peftkit.recipe.sections.base import BaseSection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from torch import Tensor

    from peftkit.merge.delta import Delta

    Change = Callable[[int, int, Tensor], Tensor]
    """What some rows of a folded weight were before, as far as the change can tell."""

FOLD_FILE = "fold.json"
"""What was folded, what rounding lost of it, and how the base is made again."""
UNDO_FILE = "fold.undo"
"""Differences and factors, in the format of safetensors; another ending would make it weights."""
EXACT_BITS = 52
"""Whole numbers below two to this power are exact in float64, and so are their sums."""
WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of a number: whole numbers of as many bytes."""
ENTRIES = 1 << 20
"""Of a block."""
LEVEL = 6
"""Of the compression."""


@dataclass(frozen=True, slots=True)
class Undo:
    """What was kept for taking a fold back."""

    bytes: int
    facts: dict[str, Any]
    """What `fold.json` says of it."""


@dataclass(frozen=True, slots=True)
class _Guess:
    """What tells a base's tensor from the folded one, nearly."""

    kind: str = "none"
    """`factors`, `rows` or `columns` of numbers, or `none`."""
    tensors: tuple[Tensor, ...] = ()
    exponent: int = 0


def write_undo(
    delta: Delta, parameters: Mapping[str, str], base: TensorFiles, folded: Path
) -> Undo:
    """Keep what it takes to make the base's files again from folded ones.

    Args:
        delta: the change that was folded, as the base's weights lie.
        parameters: which parameter each tensor is that changed.
        base: its files.
        folded: the folder with the folded files, where this is kept too.

    Raises:
        RunError: it could not be written.
    """
    kept: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    with TensorFiles(replace(base.origin, name=str(folded), folder=folded)) as after:
        for name, parameter in parameters.items():
            guess = _find_guess(delta, parameter)
            kept |= {f"{name}/{place}": part for place, part in enumerate(guess.tensors)}
            kept[f"{name}/difference"] = _difference(name, guess, base, after)
            told[name] = {"kind": guess.kind, "exponent": guess.exponent}
    path = folded / UNDO_FILE
    try:
        save_file(kept, path, metadata={"tensors": json.dumps(told)})
    except SafetensorError as problem:
        raise RunError(f"`{UNDO_FILE}` could not be written: {problem}") from None
    digests = {file.name: sha256_of(file) for file in base.paths}
    size = path.stat().st_size
    return Undo(size, {"bytes": size, "sha256": sha256_of(path), "files": digests})


def undo_fold(folded: Path, out: Path) -> dict[str, str]:
    """Write the base as it was before a fold, and return the digest of each file of weights.

    Raises:
        InputError: the folder holds no fold that can be taken back, or was changed since.
        WriteError: it could not be written; what was there still is.
    """
    facts = _read_facts(folded)
    refuse_to_replace(out, "")
    with (
        TensorFiles(locate(BaseSection(model=str(folded)))) as files,
        safe_open(folded / UNDO_FILE, framework="pt") as kept,
        whole_folder(out, files.bytes) as building,
    ):
        told = json.loads(kept.metadata()["tensors"])
        for path in files.paths:
            _restore(path, building / path.name, files, kept, told)
            _check(building / path.name, facts["files"])
        for path in beside(folded):
            shutil.copyfile(path, building / path.name)
    return dict(facts["files"])


def _read_facts(folded: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folded / FOLD_FILE).read_text(encoding="utf-8"))["undo"]
        digest, files = str(facts["sha256"]), dict(facts["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"`{folded}` holds no fold that can be taken back: {FOLD_FILE} says nothing of it",
            hint="`peftkit fold ADAPTER --out DIR` writes one that can",
        ) from None
    path = folded / UNDO_FILE
    if not path.is_file() or sha256_of(path) != digest:
        state = "is not what was written" if path.is_file() else "is missing"
        raise InputError(f"`{path}` {state}: the base cannot be made again")
    return {"files": files}


def _find_guess(delta: Delta, parameter: str) -> _Guess:
    """What the change is good for; of a change of whole numbers a difference says as much."""
    module, _, kind = parameter.rpartition(".")
    low, scaling = delta.low.get(module), delta.scalings.get(module)
    whole = delta.dense.get(parameter) is not None
    if low is not None and scaling is None and kind == "weight" and not whole:
        left, right = low.up, low.down
        if low.layer != "linear":
            left, right = low.down.T, low.up.T
        bits = (EXACT_BITS - math.ceil(math.log2(max(low.rank, 1)))) // 2
        (one, first), (other, second) = (_fixed(each, bits) for each in (left, right))
        return _Guess("factors", (one, other), first + second)
    if scaling is not None and low is None and not whole:
        in_row = kind == "bias" or scaling.inputs != scaling.turned
        return _Guess("columns" if in_row else "rows", (scaling.values.double() + 1,))
    return _Guess()


def _fixed(factor: Tensor, bits: int) -> tuple[Tensor, int]:
    """The numbers as whole ones, and the power of two that they are times."""
    top = float(factor.abs().max()) if factor.numel() else 0.0
    exponent = math.frexp(top)[1] - bits
    whole = torch.ldexp(factor.double(), torch.tensor(-exponent)).round()
    return whole.to(torch.int32).contiguous(), exponent


def _change(guess: _Guess) -> Change:
    """What guesses rows of the base from folded ones."""
    if guess.kind == "factors":
        left, right = (each.double() for each in guess.tensors)
        scale = 2.0**guess.exponent
        return lambda start, stop, after: after - (left[start:stop] @ right) * scale
    if guess.kind == "columns":
        return lambda _, __, after: after / guess.tensors[0]
    if guess.kind == "rows":
        return lambda start, stop, after: after / guess.tensors[0][start:stop, None]
    return lambda _, __, after: after


def _guesses(name: str, guess: _Guess, after: TensorFiles) -> Iterator[tuple[int, int, Tensor]]:
    """Blocks of rows, and what they were before, as whole numbers of as many bytes."""
    place = after.places[name]
    stored, change = FLOATS[place.format], _change(guess)
    for start, stop in spans(place.rows, place.columns, ENTRIES):
        folded = after.rows(name, start, stop)
        before = change(start, stop, folded.double()).to(stored)
        usable = torch.where(before.isfinite(), before, folded)
        yield start, stop, usable.view(WHOLE[usable.element_size()])


def _difference(name: str, guess: _Guess, base: TensorFiles, after: TensorFiles) -> Tensor:
    """What must be added to the guess, compressed."""
    packer = zlib.compressobj(LEVEL)
    packed = bytearray()
    for start, stop, near in _guesses(name, guess, after):
        exact = base.rows(name, start, stop).view(near.dtype)
        packed += packer.compress((exact - near).numpy().tobytes())
    packed += packer.flush()
    return torch.frombuffer(packed, dtype=torch.uint8)


def _restore(
    source: Path, target: Path, files: TensorFiles, kept: Any, told: Mapping[str, Any]
) -> None:
    """One file of weights as it was; its header did not change."""
    names = sorted(
        (name for name, place in files.places.items() if place.path == source),
        key=lambda name: (files.places[name].first, files.places[name].bytes),
    )
    with source.open("rb") as given, target.open("wb") as file:
        file.write(given.read(8 + header_bytes(source)))
        for name in names:
            if name in told:
                _restore_tensor(file, name, files, kept, told[name])
                continue
            size = files.places[name].bytes
            for start in range(0, size, PIECE):
                piece = files.raw(name, start, min(start + PIECE, size))
                file.write(memoryview(piece.numpy()))  # type: ignore[arg-type]


def _restore_tensor(
    file: BinaryIO, name: str, files: TensorFiles, kept: Any, told: Mapping[str, Any]
) -> None:
    count = {"factors": 2, "rows": 1, "columns": 1}.get(told["kind"], 0)
    tensors = tuple(kept.get_tensor(f"{name}/{place}") for place in range(count))
    guess = _Guess(told["kind"], tensors, int(told["exponent"]))
    packed = zlib.decompressobj()
    left = kept.get_tensor(f"{name}/difference").numpy().tobytes()
    for _, __, near in _guesses(name, guess, files):
        size = near.numel() * near.element_size()
        found = packed.decompress(left, size)
        left = packed.unconsumed_tail
        if len(found) != size:
            raise InputError(f"`{UNDO_FILE}` holds too little for `{name}`")
        exact = near + torch.frombuffer(bytearray(found), dtype=near.dtype).view(near.shape)
        file.write(exact.numpy().tobytes())


def _check(path: Path, digests: Mapping[str, str]) -> None:
    if sha256_of(path) != digests.get(path.name):
        raise InputError(
            f"`{path.name}` would not be what it was: the folded weights were changed since",
            hint="fold the adapter again, or get the base from where it was published",
        )
