"""The checks of a merge: what tasks lost to each other, what was forgotten, what a search is worth.

Every threshold stands here, written down before the merges it judges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.diagnose.checks import FORGETTING
from peftkit.diagnose.diagnose import ORDER
from peftkit.diagnose.finding import Finding
from peftkit.evaluate.retention import KEPT, MERGED
from peftkit.report.wording import UNITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Loose = Mapping[str, Any]

FORGOTTEN_SHARE = 0.05
"""Points, as a share of one, that right answers on control rows may fall."""
LOSSY = 0.1
"""Relative error of the change from which a cut of the ranks is worth a warning."""
FORGETS = ": it forgets what the base knew"
REMEMBER = "smaller numbers, or `search.subject_to: {control: 0.95}`"
NEAR_END = 0.02
"""Share of a range, from its ends, within which a number stands at an end."""


def diagnose_merge(metrics: Loose, search: Loose | None, error: float) -> list[Finding]:
    """Every finding of a merge, the most serious first.

    Args:
        metrics: what `metrics.json` says; empty where nothing was measured.
        search: what `search.json` says, where numbers were searched.
        error: what cutting the ranks lost of the change.
    """
    sets, unit = metrics.get("sets", []), UNITS.get(metrics.get("task", "causal-lm"), "row")
    worsened = search["objective"] if search and search["direction"] == "worsen" else None
    found = [check_cut(error)]
    if sets:
        found += [
            check_any_effect(sets, unit),
            *check_interference([each for each in sets if each["name"] != worsened]),
            *(check_control(each, unit) for each in sets if each["role"] == "control"),
        ]
    if search:
        found += [*check_holdout(sets, search, unit), *check_constraints(sets, search)]
        found += check_search(search)
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))


def check_cut(error: float) -> Finding:
    """Whether cutting the ranks lost much."""
    if error <= LOSSY:
        said = "nothing was cut off" if error < 1e-6 else f"cutting the ranks lost {error:.3g}"
        return Finding("lossy-cut", "ok", error, LOSSY, f"{said} of the change")
    return Finding(
        "lossy-cut",
        "warning",
        error,
        LOSSY,
        f"cutting the ranks lost {100 * error:.0f} % of the change",
        "keep more: `output.rank: all` is the exact sum and an adapter too",
    )


def check_any_effect(sets: list[Loose], unit: str) -> Finding:
    """Whether the merge differs from the base on any set."""
    sizes = {each["name"]: _change(each) for each in sets}
    name = max(sizes, key=lambda each: abs(sizes[each]["change"]))
    metric = next(each["metric"] for each in sets if each["name"] == name)
    said = f"the largest change from the base is on `{name}`: {_shown(sizes[name], metric, unit)}"
    if all(each["low"] <= 0 <= each["high"] for each in sizes.values()):
        return Finding(
            "no-effect",
            "warning",
            sizes[name]["change"],
            0.0,
            f"{said}; every interval includes no change",
            "raise the numbers of the formula, and look at how much the terms cancel",
        )
    return Finding("no-effect", "ok", sizes[name]["change"], 0.0, said)


def check_interference(sets: list[Loose]) -> Iterator[Finding]:
    """Which tasks keep less than they should of what their best parent gained."""
    having = [each for each in sets if each["retained"] is not None and each["role"] == "task"]
    if not having:
        return
    short = [each for each in having if each["retained"]["share"] < KEPT]
    for each in short:
        kept = each["retained"]
        yield Finding(
            "task-interference",
            "warning" if kept["high"] < KEPT else "note",
            kept["share"],
            KEPT,
            f"{_kept(each)}" + ("" if kept["high"] < KEPT else "; the interval reaches further"),
            "give it a larger number, let `search` weigh it, or try `method: {name: ties@paper}`",
        )
    if not short:
        least = min(having, key=lambda each: float(each["retained"]["share"]))
        share = least["retained"]["share"]
        yield Finding("task-interference", "ok", share, KEPT, f"{_kept(least)}, and no task less")


def _kept(found: Loose) -> str:
    kept = found["retained"]
    return (
        f"`{found['name']}` keeps {100 * kept['share']:.0f} % "
        f"({100 * kept['low']:.0f} to {100 * kept['high']:.0f} %) of what "
        f"`{found['best_parent']}` gained over the base"
    )


def check_control(found: Loose, unit: str) -> Finding:
    """Whether what should stay as it is got worse."""
    change, metric = _change(found), found["metric"]
    kept = found["performance"][MERGED]["share"]
    said = (
        f"`{found['name']}` changed by {_shown(change, metric, unit)}, and the merge is "
        f"{100 * kept:.1f} % as good as the base on it"
    )
    if metric == "loss":
        rise, fine = change["change"], change["change"] <= FORGETTING
        return Finding(
            "forgetting",
            "ok" if fine else "warning" if rise <= 5 * FORGETTING else "problem",
            rise,
            FORGETTING,
            said if fine else said + FORGETS,
            "" if fine else REMEMBER,
        )
    fall, fine = -change["change"], -change["change"] <= FORGOTTEN_SHARE
    return Finding(
        "forgetting",
        "ok" if fine else "warning" if fall <= 5 * FORGOTTEN_SHARE else "problem",
        fall,
        FORGOTTEN_SHARE,
        said if fine else said + FORGETS,
        "" if fine else REMEMBER,
    )


def check_holdout(sets: list[Loose], search: Loose, unit: str) -> Iterator[Finding]:
    """Whether numbers do worse on rows that the search did not see."""
    for each in sets:
        if (both := each.get("holdout")) is None:
            continue
        turned = each["name"] == search["objective"] and search["direction"] == "worsen"
        sign = -1 if turned else 1
        worse, surely = sign * both["difference"], min(sign * both["low"], sign * both["high"]) > 0
        said = (
            f"loss on `{each['name']}` changed by {both['searched']:+.3f} nats per {unit} on rows "
            f"that the search saw, and by {both['held']:+.3f} on rows that it did not "
            f"(95 % interval of the difference: {both['low']:+.3f} to {both['high']:+.3f})"
        )
        advice = "search on more rows: raise `evaluate.rows`, or lower `search.holdout`"
        if surely:
            yield Finding("overfitting", "warning", worse, 0.0, said, advice)
        else:
            yield Finding("overfitting", "ok", worse, 0.0, said)


def check_constraints(sets: list[Loose], search: Loose) -> Iterator[Finding]:
    """Whether what had to be kept is kept on rows that the search did not see."""
    by_name = {each["name"]: each for each in sets}
    for name, least in search["subject_to"].items():
        if name not in by_name:
            continue
        kept = by_name[name]["performance"][MERGED]
        said = (
            f"on held-out rows of `{name}` the merge is {100 * kept['share']:.1f} % "
            f"({100 * kept['low']:.1f} to {100 * kept['high']:.1f} %) as good as the base, and "
            f"{100 * least:g} % was asked for"
        )
        left = kept["share"] - least
        if left >= 0:
            yield Finding("constraint", "ok", left, 0.0, said)
            continue
        yield Finding(
            "constraint",
            "warning" if kept["high"] < least else "note",
            left,
            0.0,
            said,
            "ask for a little more than is needed, or search on more rows",
        )


def check_search(search: Loose) -> Iterator[Finding]:
    """Whether the search was stopped by a range, or could not be trusted."""
    places = {
        name: min(search["best"][name] - low, high - search["best"][name]) / (high - low)
        for name, (low, high) in search["over"].items()
    }
    name = min(places, key=lambda each: places[each])
    number, (low, high) = search["best"][name], search["over"][name]
    said = f"the best number of `{name}` is {number:.4g}, of {low:g} to {high:g}"
    if places[name] <= NEAR_END and number:
        yield Finding(
            "search-range",
            "note",
            places[name],
            NEAR_END,
            f"{said}: the range ended the search",
            "a wider range under `search.over` may do better",
        )
    else:
        yield Finding("search-range", "ok", places[name], NEAR_END, f"{said}: inside it")
    if search["note"]:
        yield Finding(
            "not-monotone",
            "note",
            1.0,
            0.0,
            f"halving takes for granted that all goes one way, and {search['note']}",
            "look at the trace in the report, and search a range where it does",
        )


def _change(found: Loose) -> Loose:
    change: Loose = found["against_base"][MERGED][found["metric"]]
    return change


def _shown(change: Loose, metric: str, unit: str) -> str:
    if metric == "loss":
        reach = f"{change['low']:+.3f} to {change['high']:+.3f}"
        return f"{change['change']:+.3f} nats per {unit} ({reach})"
    figures = [100 * change[key] for key in ("change", "low", "high")]
    return "{:+.1f} points ({:+.1f} to {:+.1f})".format(*figures)
