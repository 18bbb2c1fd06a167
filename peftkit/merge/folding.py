"""A change folded into the weights of a base, a few rows in memory at a time, never the model.

Everything is added in float64 and rounded once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from peftkit.adapters.verify import other_base
from peftkit.disk.durable import whole_folder
from peftkit.disk.replacing import refuse_to_replace
from peftkit.errors import InputError
from peftkit.merge.base_weights import BaseWeights, nearest, open_base
from peftkit.merge.layer_kinds import layer_kinds
from peftkit.merge.model_files import MERGE_FILE, PLAIN, refuse_lossy, write_model
from peftkit.merge.row_changes import (
    BaseRows,
    RowChange,
    of_factors,
    of_scaling,
    of_whole,
)
from peftkit.merge.saving import describe, missing_under
from peftkit.merge.tensor_files import TensorFiles
from peftkit.merge.undo import FOLD_FILE, write_undo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from peftkit.merge.delta import Delta
    from peftkit.merge.low_rank import LowRank
    from peftkit.merge.model_files import Finish
    from peftkit.merge.row_changes import Fill


@dataclass(frozen=True, slots=True)
class Fold:
    """A model with a change in its weights, and what rounding lost of the change."""

    folder: Path
    lost: dict[str, float]
    """By tensor: the norm of what is missing, by that of the change."""
    relative: float
    """The same of all together."""
    undo_bytes: int = 0
    """What it takes to have the base back, bit for bit."""


def fold_delta(
    delta: Delta,
    base: str,
    out: Path,
    finish: Finish = PLAIN,
) -> Fold:
    """Write the folded model; see `Delta.fold`.

    Args:
        delta: the change.
        base: what it is folded into.
        out: where to.
        finish: what is said beside it, and how much rounding may take.

    Raises:
        RunError: rounding takes more.
    """
    refuse_what_has_no_place(delta)
    origin = open_base(base).origin
    if problems := other_base(delta.facts.get("base"), origin.name):
        raise InputError(f"`{base}` is not the base of this change", problems=problems)
    _refuse_half(delta, origin.folder)
    refuse_to_replace(out, FOLD_FILE)
    with TensorFiles(origin) as files:
        rows = BaseRows(files, torch.float64)
        changes = {name: change.begin for name, change in changes_of(delta, rows).items()}
        with whole_folder(out, files.bytes + 2**20) as building:
            written = write_model(files, rows, changes, building)
            refuse_lossy(written, finish.fail_above)
            undo = write_undo(*place(delta, files), files, building)
            said = {
                "base": origin.name,
                "terms": [
                    {"name": each.name, "digest": each.digest, "weight": each.weight}
                    for each in delta.terms
                ],
                "lost": {"relative": written.relative, "tensors": written.lost},
                "undo": undo.facts,
            }
            (building / FOLD_FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
            if finish.note is not None:
                text = json.dumps({**describe(delta), **finish.note}, indent=2) + "\n"
                (building / MERGE_FILE).write_text(text, encoding="utf-8")
    return Fold(out, written.lost, written.relative, undo.bytes)


def refuse_what_has_no_place(delta: Delta) -> None:
    """Say what the weights of a base cannot hold.

    Raises:
        InputError: there is such a part, or nothing at all.
    """
    if delta.networks:
        raise InputError(
            "bottlenecks are networks beside the base: no weight of it does what they do",
            hint="keep them as an adapter: `peftkit merge` does",
        )
    if delta.kept:
        raise InputError(
            f"the adapter brings `{next(iter(delta.kept))}`, which the base has no place for",
            hint="keep it as an adapter, or leave it out: `--without '*score*'`",
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


def changes_of(delta: Delta, base: BaseRows) -> dict[str, RowChange]:
    """What is added to each tensor of the base's files.

    Raises:
        InputError: the base has no such weight, one of another shape, or one that stands for two.
    """
    placed, parameters = place(delta, base.files)
    return {
        name: RowChange(tuple(_parts(placed, parameter, name, base)))
        for name, parameter in parameters.items()
    }


def place(delta: Delta, files: TensorFiles) -> tuple[Delta, dict[str, str]]:
    """The change as the base's weights lie, and which parameter each tensor of its files is.

    Raises:
        InputError: the base has no such weight, or one that stands for two.
    """
    opened = BaseWeights(files.origin, {name: each.path for name, each in files.places.items()})
    kinds = layer_kinds(files.origin)
    placed = _as_it_lies(delta, kinds)
    found: dict[str, str] = {}
    for parameter in _parameters(placed, opened):
        name, module = opened.find(parameter), parameter.removesuffix(".weight")
        of_one = module in delta.low or module in delta.scalings or module == "lm_head"
        tied = of_one and _kind(kinds, module, "") == "tied"
        if tied or name in found:
            raise InputError(
                f"`{name}` is both the embedding and the head of this base, and the adapter "
                "changes one of them",
                hint=f"keep it as an adapter, or leave the change out: `--without '{module}'`",
            )
        found[name] = parameter
    return placed, found


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


def _parameters(delta: Delta, opened: BaseWeights) -> list[str]:
    """Names of what changes."""
    weights = [f"{name}.weight" for name in (*delta.low, *delta.scalings)]
    biases = [
        f"{name}.bias"
        for name, each in delta.scalings.items()
        if not each.inputs and nearest(f"{name}.bias", opened.files) is not None
    ]
    return list(dict.fromkeys([*weights, *delta.dense, *biases]))


def _parts(delta: Delta, parameter: str, name: str, base: BaseRows) -> Iterator[Fill]:
    """What of a change is added to one parameter.

    Raises:
        InputError: it has another shape than the base's tensor.
    """
    module, _, kind = parameter.rpartition(".")
    place = base.place(name)
    if (low := delta.low.get(module)) is not None and kind == "weight":
        left, right = _factors(low, base.dtype)
        _fit(name, place.shape, (left.shape[0], right.shape[1]))
        yield of_factors(left, right)
    if (whole := delta.dense.get(parameter)) is not None:
        _fit(name, place.shape, tuple(whole.shape))
        yield of_whole(whole, place.columns)
    if (scaling := delta.scalings.get(module)) is not None:
        numbers = scaling.values.to(base.dtype)
        in_row = kind == "bias" or scaling.inputs != scaling.turned
        wanted = place.columns if in_row else place.rows
        _fit(name, (wanted,), tuple(numbers.shape))
        read = base.reader(name)
        yield of_scaling(numbers[None] if in_row else numbers[:, None], read)


def _factors(low: LowRank, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two matrices whose product lies as the weight does."""
    up, down = low.up.to(dtype), low.down.to(dtype)
    return (up, down) if low.layer == "linear" else (down.T.contiguous(), up.T.contiguous())


def _fit(name: str, base: tuple[int, ...], change: tuple[int, ...]) -> None:
    if base != change:
        raise InputError(f"`{name}` has shape {base} in the base, and its change {change}")
