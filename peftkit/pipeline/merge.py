"""`merge`, `fold` and `extract`: adapters added up, put into weights, and taken out of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from peftkit.errors import RecipeError, RunError
from peftkit.merge.combine import combine, measure_conflict
from peftkit.merge.delta import Delta
from peftkit.merge.low_rank import lost
from peftkit.merge.methods.catalog import find_method
from peftkit.merge.methods.inputs import Inputs
from peftkit.merge.saving import missing_under
from peftkit.recipe.expression import explain, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from peftkit.merge.folding import Fold
    from peftkit.merge.low_rank import Spectrum

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Ranks whose error is told beside the one that is kept."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How low the ranks of a merged adapter shall be, and what that may cost."""

    rank: int | None = None
    energy: float | None = None
    fail_above: float = 1.0
    """Relative error from which nothing is saved."""


@dataclass(frozen=True, slots=True)
class How:
    """A method of the catalog, and its settings."""

    method: str = "sum"
    settings: Mapping[str, Any] = field(default_factory=dict)


def merge(
    expression: str,
    adapters: Mapping[str, str],
    out: Path | None,
    *,
    how: How = How(),
    cut: Cut = Cut(),
    base: str | None = None,
) -> dict[str, Any]:
    """What the formula gives, and how its terms stand to each other; saved where `out` says.

    Args:
        expression: such as `chat + 0.7*code`.
        adapters: where each name in it is.
        out: the folder of the merged adapter; None only looks.
        how: the method, which takes the numbers of the formula as weights.
        cut: of the ranks.
        base: where the base is, for the kinds of adapters that need it.

    Raises:
        RecipeError: the formula cannot be read, or an adapter is not there.
        InputError: an adapter is damaged or cannot be a term of a sum.
        RunError: the cut costs more than it may.
    """
    weights = parse(expression, adapters)
    if unused := [name for name in adapters if name not in weights]:
        raise RecipeError(
            f"`{unused[0]}` is given but not in the formula `{expression}`",
            hint="put it in, or leave `--adapter` out",
        )
    terms = {name: Delta.load(adapters[name], base) for name in weights}
    total = _merge(weights, terms, how, cut)
    merged = total.compress(rank=cut.rank, energy=cut.energy)
    facts = {
        "formula": explain(weights),
        "method": how.method,
        "settings": dict(how.settings),
        "terms": [_describe(name, weights[name], terms[name]) for name in weights],
        "pairs": [_compare(one, other, terms) for one, other in combinations(weights, 2)],
        "canceled": _canceled(weights, terms),
        "merged": _describe("merged", 1.0, merged),
        "trained_above": [note["name"] for note in missing_under(total)],
        "error": merged.error.relative,
        "worst_layer": dict(zip(("name", "error"), merged.error.worst, strict=True)),
        "out": str(out) if out else None,
    }
    if merged.error.relative > cut.fail_above:
        raise RunError(
            f"cutting the ranks loses {merged.error.relative:.3f} of the change, more than "
            f"{cut.fail_above:g}: nothing was saved",
            hint="a higher `--rank`, or none: the exact sum is an adapter too",
        )
    if out is not None:
        merged.save(out)
    return facts


def _merge(weights: Mapping[str, float], terms: Mapping[str, Delta], how: How, cut: Cut) -> Delta:
    """The sum, or what another method makes of its terms."""
    if how == How():
        return sum((weights[name] * terms[name] for name in weights), start=Delta())
    method = find_method(how.method)
    if method.kind == "entry-wise" and cut.rank is None and cut.energy is None:
        raise RecipeError(
            f"method `{method.name}` looks at single entries, so what it gives has full rank: how "
            "much of it shall the adapter keep?",
            hint="`--rank 16`, or `--energy 0.99`; the error is told",
        )
    changes, inputs = _inputs(weights, terms)
    return combine(method, how.settings, changes, inputs)


def _canceled(weights: Mapping[str, float], terms: Mapping[str, Delta]) -> float | None:
    """Share of the sizes of all low-rank changes that their sum cancels; None where none is."""
    if not all(term.low for term in terms.values()):
        return None
    return measure_conflict(*_inputs(weights, terms)).canceled


def _inputs(weights: Mapping[str, float], terms: Mapping[str, Delta]) -> tuple[list[Delta], Inputs]:
    """The changes of a formula as the methods want them."""
    digests = ["+".join(each.digest for each in terms[name].terms) for name in weights]
    inputs = Inputs(tuple(weights.values()), tuple(weights), tuple(digests))
    return [terms[name] for name in weights], inputs


def _describe(name: str, weight: float, delta: Delta) -> dict[str, Any]:
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


def fold(adapter: str, out: Path, *, base: str | None = None) -> Fold:
    """The base of an adapter with the adapter in its weights.

    Raises:
        RecipeError: nobody says which base.
        InputError: the adapter has no place in weights, or is damaged.
    """
    delta = Delta.load(adapter, base)
    named = base or delta.facts.get("base")
    if named is None:
        raise RecipeError(f"`{adapter}` names no base", hint="say which: `--base MODEL`")
    return delta.fold(named, out)


def extract(
    tuned: str, base: str, out: Path, *, cut: Cut, left_out: Sequence[str] = ()
) -> dict[str, Any]:
    """A low-rank adapter out of a full fine-tune, and its error by rank.

    Raises:
        InputError: what changed has no factors, or the two are not of one shape.
    """
    delta = Delta.load(tuned, base)
    if left_out:
        delta = delta.without(*left_out)
    spectra = list(delta.compress(energy=1.0).spectra().values())
    top = max((len(each.values) for each in spectra), default=0)
    found = delta.compress(rank=cut.rank, energy=cut.energy)
    found.save(out)
    return {
        "error": found.error.relative,
        "error_by_rank": [
            {"rank": rank, "error": _error_at(rank, spectra)} for rank in RANKS if rank < top
        ],
        "modules": len(found.low),
        "out": str(out),
    }


def _error_at(rank: int, spectra: Sequence[Spectrum]) -> float:
    """What all layers together would lose at a rank, by the norm of the whole."""
    missing, whole = (sum(lost(each, kept) for each in spectra) for kept in (rank, 0))
    return math.sqrt(missing / whole)
