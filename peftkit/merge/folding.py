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
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING

import torch

from peftkit.adapters.verify import other_base
from peftkit.adapters.weights_header import read_header
from peftkit.base.locate import DEFINING
from peftkit.disk.durable import whole_folder
from peftkit.errors import InputError, RunError
from peftkit.merge.base_weights import layer_kinds, nearest, open_base
from peftkit.merge.saving import missing_under, refuse_to_replace

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
    if problems := other_base(delta.facts.get("base"), opened.origin.name):
        raise InputError(f"`{base}` is not the base of this change", problems=problems)
    _refuse_half(delta, opened.origin.folder)
    refuse_to_replace(out, FOLD_FILE)
    changes = _find_changes(delta, opened)
    files = sorted(set(opened.files.values()))
    needed = sum(path.stat().st_size for path in files) + 2**20
    missing: dict[str, tuple[float, float, bool]] = {}
    with whole_folder(out, needed) as building:
        for path in files:
            _write_file(path, building / path.name, opened, changes, missing)
        for path in _beside(opened.origin.folder):
            shutil.copyfile(path, building / path.name)
        if not any(moved for _, _, moved in missing.values()):
            raise RunError(
                "the fold would be the base itself: the change is nothing, or rounded away",
                hint="keep it as an adapter: `delta.save(folder)`",
            )
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


def _refuse_half(delta: Delta, base: Path) -> None:
    """Say where a term was trained above an adapter that neither the sum nor the base holds."""
    folded = _folded(base)
    if missing := [note for note in missing_under(delta) if note["sha256"] not in folded]:
        name = missing[0]["name"]
        raise InputError(
            f"an adapter was trained above another, `{name}`, and means little without it",
            hint=f"fold their sum: `peftkit merge '{name} + above' --adapter {name}=PATH ...`",
        )


def _folded(base: Path) -> set[str]:
    """Digests of what was folded into a base, where a fold says so."""
    try:
        terms = json.loads((base / FOLD_FILE).read_text(encoding="utf-8"))["terms"]
        return {str(term["digest"]) for term in terms}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _find_changes(delta: Delta, opened: BaseWeights) -> dict[str, Change]:
    """What is added to each tensor of the base's files.

    Raises:
        InputError: the base has no such weight, or one that stands for two.
    """
    found: dict[str, Change] = {}
    kinds = layer_kinds(opened.origin)
    for parameter, change in _changes(_as_it_lies(delta, kinds), opened):
        name, module = opened.find(parameter), parameter.removesuffix(".weight")
        of_one = module in delta.low or module in delta.scalings or module == "lm_head"
        tied = of_one and _kind(kinds, module, "") == "tied"
        if tied or name in found:
            raise InputError(
                f"`{name}` is both the embedding and the head of this base, and the adapter "
                "changes one of them",
                hint=f"keep it as an adapter, or leave the change out: `delta.without('{module}')`",
            )
        found[name] = change
    return found


def _as_it_lies(delta: Delta, kinds: dict[str, str]) -> Delta:
    """The change with weights turned as the base has them.

    peft says so once for all layers: of GPT-2 with its head, what holds for the last one.
    """
    low = {n: replace(each, layer=_kind(kinds, n, each.layer)) for n, each in delta.low.items()}
    scalings = {
        n: replace(each, turned=_kind(kinds, n, "conv1d" if each.turned else "linear") == "conv1d")
        for n, each in delta.scalings.items()
    }
    return replace(delta, low=low, scalings=scalings)


def _kind(kinds: dict[str, str], module: str, otherwise: str) -> str:
    near = nearest(module, kinds)
    return otherwise if near is None else kinds[near]


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
        if not scaling.inputs and nearest(f"{name}.bias", opened.files) is not None:
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
    missing: dict[str, tuple[float, float, bool]],
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
            gone, size = float((after - wanted).norm()), float(change.norm())
            missing[name] = (gone, size, not torch.equal(after, before))
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


def _sum_up(folder: Path, missing: dict[str, tuple[float, float, bool]]) -> Fold:
    lost = {name: gone / size if size else 0.0 for name, (gone, size, _) in missing.items()}
    gone = math.sqrt(sum(each**2 for each, _, _ in missing.values()))
    size = math.sqrt(sum(each**2 for _, each, _ in missing.values()))
    return Fold(folder, lost, gone / size if size else 0.0)
