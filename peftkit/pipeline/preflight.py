"""What a merge would be, before it is written: how its terms stand to each other, and its cost."""

from __future__ import annotations

import math
import resource
import sys
from fnmatch import fnmatchcase
from itertools import combinations
from typing import TYPE_CHECKING, Any

from peftkit.merge.combine import measure_conflict
from peftkit.merge.low_rank import lost
from peftkit.merge.saving import missing_under
from peftkit.pipeline.merge_terms import inputs_of, rules_of
from peftkit.recipe.expression import explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from peftkit.merge.delta import Delta
    from peftkit.merge.low_rank import Spectrum
    from peftkit.pipeline.merge_terms import Terms
    from peftkit.recipe.merge_schema import MergeRecipe

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Ranks whose error is told beside the one that is kept."""


def look(
    recipe: MergeRecipe, terms: Terms, weights: Mapping[str, float], total: Delta, merged: Delta
) -> dict[str, Any]:
    """The figures of a merge; the same ones for the same merge on any machine, up to rounding.

    Args:
        recipe: what was asked for.
        terms: what goes in.
        weights: the numbers of the formula.
        total: what it gives.
        merged: the same, cut.
    """
    given = terms.given
    return {
        "formula": explain(dict(weights)),
        "by_layer": list(explain_layers(recipe, terms, weights)),
        "method": recipe.method.name,
        "settings": recipe.method.model_dump(exclude={"name"}),
        "terms": [describe(name, weights[name], given[name]) for name in weights],
        "pairs": [_compare(one, other, given) for one, other in combinations(weights, 2)],
        "canceled": _canceled(weights, terms.deltas),
        "merged": describe("merged", 1.0, merged),
        "norm_ratio": _norm_ratio(weights, terms.deltas, total),
        "trained_above": [note["name"] for note in missing_under(total)],
        "left_out": [
            {"term": name, "parts": parts} for name, parts in terms.left_out.items() if parts
        ],
        "heads": _heads(terms, merged),
        "error": merged.error.relative,
        "error_by_rank": error_by_rank(list(total.spectra().values())),
        "worst_layer": dict(zip(("name", "error"), merged.error.worst, strict=True)),
    }


def explain_layers(
    recipe: MergeRecipe, terms: Terms, weights: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """The formula with its numbers, once for each group of layers in which they differ."""
    rules = {name: rules_of(recipe, name) for name in weights}
    groups: dict[tuple[float, ...], list[str]] = {}
    for layer in _layers(terms):
        numbers = tuple(weight * _factor(layer, rules[name]) for name, weight in weights.items())
        groups.setdefault(numbers, []).append(layer)
    for numbers, layers in groups.items():
        yield {
            "formula": explain(dict(zip(weights, numbers, strict=True))),
            "layers": len(layers),
            "such_as": layers[0],
        }


def error_by_rank(spectra: Sequence[Spectrum]) -> list[dict[str, float]]:
    """What all layers together would lose at each rank, by the norm of the whole."""
    top = max((len(each.values) for each in spectra), default=0)
    return [{"rank": rank, "error": _error_at(rank, spectra)} for rank in RANKS if rank < top]


def describe(name: str, weight: float, delta: Delta) -> dict[str, Any]:
    """A term, or the result."""
    ranks = list(delta.ranks.values())
    return {
        "name": name,
        "weight": weight,
        "norm": None if delta.networks else delta.norm,
        "modules": len({*delta.low, *delta.scalings, *delta.networks}),
        "ranks": [min(ranks), max(ranks)] if ranks else None,
        "whole_parameters": len(delta.dense),
        "travels_along": sorted(delta.kept),
    }


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def _layers(terms: Terms) -> list[str]:
    found: dict[str, None] = {}
    for delta in terms.deltas.values():
        changed = (*delta.low, *delta.dense, *delta.scalings, *delta.networks)
        found |= dict.fromkeys(name for name in changed if name.rpartition(".")[0] not in delta.low)
    return list(found)


def _factor(layer: str, rules: Mapping[str, float]) -> float:
    return next((times for match, times in rules.items() if fnmatchcase(layer, match)), 1.0)


def _error_at(rank: int, spectra: Sequence[Spectrum]) -> float:
    missing, whole = (sum(lost(each, kept) for each in spectra) for kept in (rank, 0))
    return math.sqrt(missing / whole) if whole else 0.0


def _norm_ratio(
    weights: Mapping[str, float], terms: Mapping[str, Delta], total: Delta
) -> float | None:
    """The result's length by that of terms at right angles; None where lengths mean nothing."""
    if any(delta.networks for delta in (*terms.values(), total)):
        return None
    apart = math.hypot(*(weight * terms[name].norm for name, weight in weights.items()))
    return total.norm / apart if apart else 0.0


def _canceled(weights: Mapping[str, float], terms: Mapping[str, Delta]) -> float | None:
    """Share of the sizes of all low-rank changes that their sum cancels; None where none is."""
    if not all(term.low for term in terms.values()):
        return None
    return measure_conflict(*inputs_of(weights, terms)).canceled


def _heads(terms: Terms, merged: Delta) -> list[dict[str, Any]]:
    """Every head that a term brings, by whom, and whether it is in the result."""
    owners: dict[str, list[str]] = {}
    for name, delta in terms.given.items():
        for head in delta.kept:
            owners.setdefault(head, []).append(name)
    return [
        {"name": head, "of": names, "stays": head in merged.kept} for head, names in owners.items()
    ]


def _compare(one: str, other: str, terms: Mapping[str, Delta]) -> dict[str, Any]:
    first, second = terms[one], terms[other]
    overlaps = list(first.overlap(second).values())
    comparable = not (first.networks or second.networks)
    return {
        "pair": [one, other],
        "cosine": first.cosine(second) if comparable else None,
        "sign_conflict": first.sign_conflict(second) if overlaps else None,
        "overlap": sum(overlaps) / len(overlaps) if overlaps else None,
        "shared_modules": len(overlaps),
    }
