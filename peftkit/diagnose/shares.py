"""Whether each source of a mixture was seen as much as was asked for, and none too often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.diagnose.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REPEATED = 4.0
"""Times that rows may come: up to about four are worth as much as new ones (Muennighoff, 2023)."""
OFF = 0.1
"""Part by which a source's share of the tokens may be another than was asked for."""


def check_mixture(metrics: Mapping[str, Any], data: Mapping[str, Any]) -> list[Finding]:
    """Whether sources of a mixture had the shares they should, and whether one came too often."""
    if not data.get("mixture"):
        return []
    asked = {each["source"]: each["share_of_tokens"] for each in data["mixture"]}
    seen = metrics["seen"]["sources"]
    return [_check_shares(seen, asked), _check_repeats(seen)]


def _check_shares(seen: Sequence[Mapping[str, Any]], asked: Mapping[str, float]) -> Finding:
    found = {each["source"]: each["share_of_tokens"] for each in seen}
    # A source of which every row was left out is asked for nothing, and is nowhere.
    off = {name: abs(found[name] / share - 1) for name, share in asked.items() if share}
    name = max(off, key=lambda each: off[each])
    said = (
        f"`{name}` was {100 * found[name]:.1f} % of the tokens, and "
        f"{100 * asked[name]:.1f} % was asked for"
    )
    if off[name] <= OFF:
        return Finding("mixture", "ok", off[name], OFF, f"{said}; no source is further away")
    advice = "so small a share needs a longer run: more `train.steps`"
    return Finding("mixture", "warning", off[name], OFF, said, advice)


def _check_repeats(seen: Sequence[Mapping[str, Any]]) -> Finding:
    most = max(seen, key=lambda each: float(each["times"]))
    times, said = (
        most["times"],
        f"each row of `{most['source']}` was seen {most['times']:.1f} times",
    )
    if times <= REPEATED:
        return Finding("repeated", "ok", times, REPEATED, f"{said}, those of no source more often")
    advice = "give the source less weight or more rows, or take fewer `train.steps`"
    return Finding("repeated", "warning", times, REPEATED, said, advice)
