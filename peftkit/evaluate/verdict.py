"""Whether a merge does what it was made for, as one word and the honest sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.evaluate.compare import FEWEST, SHARES
from peftkit.evaluate.retention import KEPT, MERGED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Set = Mapping[str, Any]


def judge_sets(sets: Sequence[Set], worsened: str | None, unit: str = "token") -> dict[str, str]:
    """Whether every task got better, or the one that was to get worse did.

    Args:
        sets: figures as `retain` gives them, with their `name` and `role`.
        worsened: the set that was to get worse, where one was.
        unit: what a loss is the mean of.
    """
    aims = [s for s in sets if (s["name"] == worsened if worsened else _aimed(s))]
    if not aims:
        return {"helped": "unclear", "sentence": "no task was measured that a parent is good at"}
    ways = [_way(each, worse=worsened is not None) for each in aims]
    helped = "no" if "no" in ways else "yes" if set(ways) == {"yes"} else "unclear"
    partly = helped == "yes" and any(
        each["retained"]["share"] < KEPT for each in aims if not worsened
    )
    if partly:
        helped = "unclear"
    fewest = min(each["rows"] for each in aims)
    if fewest < FEWEST:
        helped = "unclear"
    opening = {
        "yes": "it was taken away" if worsened else "the merge does what its parents do",
        "no": "the merge does not do it",
        "unclear": "it does a part of what its parents do" if partly else "no clear effect",
    }[helped]
    said = [_say(each, unit) for each in aims]
    said += [_say(each, unit) for each in sets if each["role"] == "control" and each not in aims]
    few = f"; {fewest} rows are too few to be sure, {FEWEST} would do" if fewest < FEWEST else ""
    return {"helped": helped, "sentence": f"{opening}: {'; '.join(said)}{few}"}


def _aimed(found: Set) -> bool:
    """Whether it is a task that a parent which was added is better at than the base."""
    return found["role"] == "task" and found["retained"] is not None


def _way(found: Set, *, worse: bool) -> str:
    """Whether a set moved the way it was to, beyond chance."""
    change = found["against_base"][MERGED][found["metric"]]
    sign = (1 if found["metric"] == "loss" else -1) * (1 if worse else -1)
    low, high = sorted((sign * change["low"], sign * change["high"]))
    return "yes" if low > 0 else "no" if high < 0 else "unclear"


def _say(found: Set, unit: str) -> str:
    """How one set went from base to merge, and what that is of what its best parent did."""
    metric, change = found["metric"], found["against_base"][MERGED][found["metric"]]
    if metric == "loss":
        went = f"{change['base']:.3f} to {change['adapted']:.3f} nats per {unit}"
        reach = f"{change['low']:+.3f} to {change['high']:+.3f}"
    else:
        went = f"{100 * change['base']:.1f} to {100 * change['adapted']:.1f} %"
        went += f" {SHARES.get(metric, metric)}"
        reach = f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f} points"
    kept = found["retained"]
    part = f", {100 * kept['share']:.0f} % of the gain of `{found['best_parent']}`" if kept else ""
    return f"`{found['name']}` went from {went} (95 % interval {reach}){part}"
