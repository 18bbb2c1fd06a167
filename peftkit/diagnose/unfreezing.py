"""What thawing blocks one after the other was worth: validation at each depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.diagnose.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

WORSE = 0.0
"""Nats by which the validation loss of the deepest thaw may lie above that of the depth before."""


def check_unfreezing(found: Mapping[str, Any] | None) -> Finding | None:
    """Whether the deepest thaw that was measured helped; None for a run that thawed nothing."""
    curve = sorted((found or {}).get("curve", ()), key=lambda each: each["depth"])
    if not curve:
        return None
    shown = ", ".join(f"{_name(each)} {each['loss']:.3f}" for each in curve)
    left = len((found or {}).get("turns", ())) - len(curve)
    sentence = f"validation loss by the last part that began to learn: {shown}"
    if left:
        sentence += f"; {left} never did"
    rise = curve[-1]["loss"] - curve[-2]["loss"] if len(curve) > 1 else 0.0
    if rise <= WORSE:
        return Finding("unfreezing", "ok", rise, WORSE, sentence)
    return Finding(
        "unfreezing",
        "note",
        rise,
        WORSE,
        sentence,
        "the blocks below are better left frozen; `adapter.layers`, or `adapter.method: top` with "
        "fewer `blocks`, trains the upper ones alone and is faster",
    )


def _name(each: Mapping[str, Any]) -> str:
    return each["name"] if each["kept"] else f"{each['name']} (taken back)"
