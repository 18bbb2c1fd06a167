"""`fold` and `extract`: adapters put into weights, and taken out of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.errors import RecipeError
from peftkit.merge.delta import Delta
from peftkit.pipeline.preflight import error_by_rank

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from peftkit.merge.folding import Fold


def fold(adapter: str, out: Path, *, base: str | None = None, left_out: Sequence[str] = ()) -> Fold:
    """The base of an adapter with the adapter in its weights.

    Args:
        adapter: a run or an adapter.
        out: the folder of the new model.
        base: where the base is, unless it is where the adapter says.
        left_out: patterns of names that are not folded.

    Raises:
        RecipeError: nobody says which base.
        InputError: the adapter has no place in weights, or is damaged.
    """
    delta = Delta.load(adapter, base)
    if left_out:
        delta = delta.without(*left_out)
    named = base or delta.facts.get("base")
    if named is None:
        raise RecipeError(f"`{adapter}` names no base", hint="say which: `--base MODEL`")
    return delta.fold(named, out)


def extract(
    tuned: str,
    base: str,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """A low-rank adapter out of a full fine-tune, and its error by rank.

    Raises:
        InputError: what changed has no factors, or the two are not of one shape.
    """
    delta = Delta.load(tuned, base)
    if left_out:
        delta = delta.without(*left_out)
    spectra = list(delta.compress(energy=1.0).spectra().values())
    found = delta.compress(rank=rank, energy=energy)
    found.save(out)
    return {
        "error": found.error.relative,
        "error_by_rank": error_by_rank(spectra),
        "modules": len(found.low),
        "out": str(out),
    }
