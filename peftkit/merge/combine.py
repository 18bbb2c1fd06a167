"""One of the methods of merging put to deltas: by directions in factors, or entry by entry."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from peftkit.errors import InputError, RecipeError
from peftkit.merge import low_rank
from peftkit.merge.delta import Delta
from peftkit.merge.joining import agree_all, collect, join_parts, refuse_two
from peftkit.merge.low_rank import LowRank
from peftkit.merge.methods.conflict import SignConflict, sign_conflicts, spread_rows, total
from peftkit.merge.methods.entry_wise import merge_layers
from peftkit.merge.methods.gram import gram_of_factors
from peftkit.merge.methods.in_core import Factored
from peftkit.merge.methods.stream import Layer, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.merge.methods.catalog import Method
    from peftkit.merge.methods.inputs import Inputs

BY_HAND = "needs data that a merge of adapters alone does not have"


def combine(
    method: Method, settings: Mapping[str, Any], deltas: Sequence[Delta], inputs: Inputs
) -> Delta:
    """What a method makes of some changes, each with its weight.

    Args:
        method: of the catalog.
        settings: its parameters, as a recipe writes them.
        deltas: low-rank changes of one base.
        inputs: their weights, names and digests.

    Raises:
        RecipeError: the method cannot merge these inputs, or a setting is wrong.
        InputError: a change is of a kind that the method knows nothing of.
    """
    told = method.read(settings)
    method.check(inputs)
    if method.kind == "data":
        raise RecipeError(
            f"method `{method.name}` {BY_HAND}",
            hint=f"it is a function for Python: `peftkit.merge.methods`, {method.limits[0]}",
        )
    _refuse_other_kinds(method, deltas, inputs)
    found = MERGES[method.kind](method, told, deltas, inputs)
    terms = (
        replace(t, weight=w) for d, w in zip(deltas, inputs.weights, strict=True) for t in d.terms
    )
    return replace(
        found,
        kept=reduce(
            lambda one, other: join_parts(one, other, refuse_two), [d.kept for d in deltas]
        ),
        facts=agree_all(deltas),
        terms=collect(tuple(terms)),
    )


def measure_conflict(deltas: Sequence[Delta], inputs: Inputs) -> SignConflict:
    """How much of the weighed low-rank changes pulls in opposite directions, entry by entry."""
    stream = Stream.of(spread_rows(_pairs(deltas)), inputs)
    return total(sign_conflicts(stream).values())


def _refuse_other_kinds(method: Method, deltas: Sequence[Delta], inputs: Inputs) -> None:
    for name, delta in zip(inputs.names, deltas, strict=True):
        for what in ("dense", "scalings", "networks"):
            if getattr(delta, what):
                raise InputError(
                    f"method `{method.name}` merges low-rank changes, and `{name}` has {what}",
                    hint="`sum` adds up every kind; `peftkit extract` makes whole weights low-rank",
                )


def _pairs(deltas: Sequence[Delta]) -> dict[str, tuple[tuple[torch.Tensor, torch.Tensor], ...]]:
    """By module the factors of every change, of rank 0 where one leaves the module alone."""
    found = {}
    for name, one in _modules(deltas).items():
        nothing = LowRank(one.up[:, :0], one.down[:0], one.layer)
        changes = [delta.low.get(name, nothing) for delta in deltas]
        for change in changes:
            low_rank.join(one, change, name)  # or they are of different matrices
        found[name] = tuple((change.up, change.down) for change in changes)
    return found


def _modules(deltas: Sequence[Delta]) -> dict[str, LowRank]:
    """A change of each module that any delta changes."""
    return {name: change for delta in reversed(deltas) for name, change in delta.low.items()}


def _in_core(method: Method, told: Any, deltas: Sequence[Delta], inputs: Inputs) -> Delta:
    layers = [Factored(*each) for each in _pairs(deltas).items()]
    modules = _modules(deltas)
    found = method.function(layers, inputs, told)
    return Delta(low={n: LowRank(up, down, modules[n].layer) for n, (up, down) in found})


def _by_gram(method: Method, told: Any, deltas: Sequence[Delta], inputs: Inputs) -> Delta:
    """The whole change of each adapter is one vector: its length and angles are of all layers."""
    pairs = _pairs(deltas)
    gram = sum((gram_of_factors(each) for each in pairs.values()), start=torch.zeros(()))
    multiples = method.function(gram, inputs.weights, told)
    scaled = [delta * float(m) for delta, m in zip(deltas, multiples, strict=True)]
    return Delta(low=reduce(lambda a, b: join_parts(a, b, low_rank.join), [d.low for d in scaled]))


def _entry_wise(method: Method, told: Any, deltas: Sequence[Delta], inputs: Inputs) -> Delta:
    """The result has full rank, so it is of whole weights until it is cut."""
    stream = Stream.of([Layer.of_factors(*each) for each in _pairs(deltas).items()], inputs)
    modules, dense, layers = _modules(deltas), {}, {}
    for name, whole in merge_layers(method.function(told), stream):
        layer = modules[name].layer
        dense[f"{name}.weight"] = whole if layer == "linear" else whole.T
        layers[name] = layer
    return Delta(dense=dense, layers=layers)


MERGES = {"core": _in_core, "gram": _by_gram, "entry-wise": _entry_wise}
