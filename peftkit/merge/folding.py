"""A change folded into the weights of a base, one tensor in memory at a time, never the model.

The header of each file is copied as it is, because neither names nor shapes nor number formats
change; sums are taken in float64 and rounded once. What that rounding loses is measured: an update
of a percent of a weight in bfloat16 keeps about four fifths of itself.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING

import torch

from peftkit.adapters.verify import EMBEDDINGS
from peftkit.adapters.weights_header import read_header
from peftkit.base.locate import DEFINING, read_json
from peftkit.disk.durable import whole_folder
from peftkit.errors import InputError, RunError
from peftkit.merge.base_weights import open_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from torch import Tensor

    from peftkit.merge.base_weights import BaseWeights
    from peftkit.merge.delta import Delta

    Change = Callable[[Tensor], Tensor]
    """What is added to a weight, from the weight."""

FOLD_FILE = "fold.json"
"""What was folded, and what rounding lost of it."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A model with a change in its weights, and what rounding lost of the change."""

    folder: Path
    lost: dict[str, float]
    """By tensor: the norm of what is missing, by that of the change."""
    relative: float
    """The same of all together."""


def fold_delta(delta: Delta, base: str, out: Path) -> Fold:
    """Write the folded model; see `Delta.fold`."""
    _refuse(delta)
    opened = open_base(base)
    if read_json(opened.origin).get("quantization_config"):
        raise InputError(
            f"`{base}` is quantized: folded into 4 or 8 bits, most of a change would be rounded "
            "away",
            hint="fold into the model as it was before it was quantized, in 16 or 32 bits",
        )
    changes = _find_changes(delta, opened)
    files = sorted(set(opened.files.values()))
    needed = sum(path.stat().st_size for path in files) + 2**20
    missing: dict[str, tuple[float, float]] = {}
    with whole_folder(out, needed) as building:
        for path in files:
            _write_file(path, building / path.name, opened, changes, missing)
        for path in _beside(opened.origin.folder):
            shutil.copyfile(path, building / path.name)
        found = _sum_up(out, missing)
        said = {
            "base": opened.origin.name,
            "terms": [
                {"name": each.name, "digest": each.digest, "weight": each.weight}
                for each in delta.terms
            ],
            "lost": {"relative": found.relative, "tensors": found.lost},
        }
        (building / FOLD_FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return found


def _refuse(delta: Delta) -> None:
    """Say what has no place in the weights of a base."""
    if delta.networks:
        raise InputError(
            "bottlenecks are networks beside the base: no weight of it does what they do",
            hint="keep them as an adapter: `delta.save(folder)`",
        )
    if delta.kept:
        raise InputError(
            f"the adapter brings `{next(iter(delta.kept))}`, which the base has no place for",
            hint="keep it as an adapter, or leave it out: `delta.without('*score*')`",
        )
    if not (delta.low or delta.dense or delta.scalings):
        raise InputError("there is nothing to fold: the change is empty")


def _find_changes(delta: Delta, opened: BaseWeights) -> dict[str, Change]:
    """What is added to each tensor of the base's files.

    Raises:
        InputError: the base has no such weight, or one that stands for two.
    """
    found: dict[str, Change] = {}
    for parameter, change in _changes(delta, opened):
        name = opened.find(parameter)
        tied = parameter.removesuffix(".weight") in delta.low and _stands_for_two(name, opened)
        if tied or name in found:
            raise InputError(
                f"`{name}` is both the embedding and the head of this base, and the adapter "
                "changes one of them",
                hint="keep it as an adapter, or leave the change out: "
                f"`delta.without('{parameter.removesuffix('.weight')}')`",
            )
        found[name] = change
    return found


def _stands_for_two(name: str, opened: BaseWeights) -> bool:
    """Whether a tensor is the embedding of a base without a head of its own in its files."""
    heads = [each for each in opened.files if each.endswith(("lm_head.weight", "embed_out.weight"))]
    return name.endswith(EMBEDDINGS) and not heads


def _changes(delta: Delta, opened: BaseWeights) -> Iterator[tuple[str, Change]]:
    """What is added to each parameter."""
    for name, low in delta.low.items():
        whole = delta.dense.get(f"{name}.weight")
        parts = [low.dense()] if whole is None else [low.dense(), whole]
        yield f"{name}.weight", partial(_add, parts)
    for parameter, values in delta.dense.items():
        if parameter.removesuffix(".weight") not in delta.low:
            yield parameter, partial(_add, [values])
    for name, scaling in delta.scalings.items():
        row = scaling.values if scaling.inputs != scaling.turned else scaling.values[:, None]
        yield f"{name}.weight", partial(_multiply, row)
        if not scaling.inputs and f"{name}.bias" in opened.files:
            yield f"{name}.bias", partial(_multiply, scaling.values)


def _add(parts: list[Tensor], _: Tensor) -> Tensor:
    return reduce(torch.add, parts)


def _multiply(row: Tensor, weight: Tensor) -> Tensor:
    return weight * row


def _write_file(
    source: Path,
    target: Path,
    opened: BaseWeights,
    changes: dict[str, Change],
    missing: dict[str, tuple[float, float]],
) -> None:
    """One file of weights again, with what changes of it; its header is the same."""
    entries = sorted(read_header(source).items(), key=lambda item: item[1].start)
    with source.open("rb") as given, target.open("wb") as file:
        length = int.from_bytes(given.read(8), "little")
        given.seek(0)
        file.write(given.read(8 + length))
        for name, entry in entries:
            if name not in changes:
                given.seek(8 + length + entry.start)
                _copy(given, file, entry.end - entry.start)
                continue
            before = opened.read(name)
            change = changes[name](before.double())
            if change.shape != before.shape:
                raise InputError(
                    f"`{name}` has shape {tuple(before.shape)} in the base, and its change "
                    f"{tuple(change.shape)}"
                )
            wanted = before.double() + change
            after = wanted.to(before.dtype)
            if not bool(torch.isfinite(after).all()):
                raise RunError(f"`{name}` would not be finite: nothing was written")
            missing[name] = (float((after - wanted).norm()), float(change.norm()))
            file.write(after.contiguous().view(torch.uint8).numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def _copy(given: BinaryIO, file: BinaryIO, size: int, piece: int = 2**24) -> None:
    while size:
        found = given.read(min(piece, size))
        file.write(found)
        size -= len(found)


def _beside(folder: Path) -> list[Path]:
    """What makes a model of weights: configuration, tokenizer, index."""
    kinds = (*DEFINING, "*.safetensors.index.json", "README.md", "LICENSE*")
    found = {path for kind in kinds for path in folder.glob(kind) if path.is_file()}
    return sorted(path for path in found if path.suffix != ".safetensors")


def _sum_up(folder: Path, missing: dict[str, tuple[float, float]]) -> Fold:
    lost = {name: gone / size if size else 0.0 for name, (gone, size) in missing.items()}
    gone = math.sqrt(sum(each**2 for each, _ in missing.values()))
    size = math.sqrt(sum(each**2 for _, each in missing.values()))
    return Fold(folder, lost, gone / size if size else 0.0)
