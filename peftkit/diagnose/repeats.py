"""The checks of rows that stand twice: on both sides, among the training rows, with two labels.

As in `checks`, every threshold stands here, written down before the runs it judges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.diagnose.finding import Finding
from peftkit.report.wording import count, metric, plural

if TYPE_CHECKING:
    from collections.abc import Mapping

REPEATED = 0.05
"""Share of the training rows that may repeat earlier ones."""
CONTRADICTED = 0.01
"""Share of the training rows that others may label otherwise."""


def check_leakage(data: Mapping[str, Any], metrics: Mapping[str, Any]) -> Finding | None:
    """Whether rows the model was judged by had been trained on, and what comes out without."""
    leakage = data["leakage"]
    if leakage["exact"] is None:
        return None
    found = leakage["exact"] + leakage["near"]
    held = sum((data[name] or {"rows": 0})["rows"] for name in ("validation", "test"))
    left_out = leakage["policy"] == "remove"
    share = found / max(held + found * left_out, 1)  # what was left out is not among `held`
    counts = f"{leakage['exact']} held-out rows are training rows, {leakage['near']} nearly so"
    if not found:
        return Finding("leakage", "ok", 0.0, 0.0, "no held-out row is a training row or nearly one")
    without = "; they were left out" if left_out else f" (at least 80 % the same){_clean(metrics)}"
    return Finding(
        "leakage",
        "note" if left_out or not leakage["exact"] else "problem",
        share,
        0.0,
        counts + without,
        "" if left_out else "`data.leakage: remove` judges by the other rows only",
    )


def _clean(metrics: Mapping[str, Any]) -> str:
    """What was measured on the rows that did not leak, beside what was on all."""
    name = "test" if metrics.get("test") else "validation"
    clean = metrics.get(f"{name}_without_leaks")
    if not clean:
        return ""
    keys = [key for key in clean["difference"] if key != "loss"] or ["loss"]
    with_all, without = (
        metric(keys[0]).show(figures["adapted"])
        for figures in (metrics["difference"][name][keys[0]], clean["difference"][keys[0]])
    )
    label = metric(keys[0]).label.lower()
    rows = plural(clean["rows"], f"{name} row")
    return f"; {label} is {without} on the {rows} that did not leak, {with_all} on all"


def check_between(data: Mapping[str, Any]) -> Finding | None:
    """Whether test rows are also validation rows, so that what was chosen by these knew them."""
    counts = data["leakage"].get("between")
    if counts is None or counts["exact"] is None or not data.get("test"):
        return None
    total = counts["exact"] + counts["near"]
    if not total:
        fine = "no test row is a validation row or nearly one"
        return Finding("shared-held-out", "ok", 0.0, 0.0, fine)
    return Finding(
        "shared-held-out",
        "note",
        total,
        0.0,
        f"{counts['exact']} test rows are validation rows, {counts['near']} nearly so: whatever is "
        "chosen by validation is not unseen in the test",
        "name other rows under `data.validation`",
    )


def check_benchmarks(data: Mapping[str, Any]) -> Finding | None:
    """Whether rows of `data.benchmarks` were trained on."""
    counts = data["leakage"].get("sets", {}).get("benchmarks")
    if counts is None:
        return None
    total, said = _apart(counts, "benchmark rows")
    if not total:
        return Finding("benchmark-leakage", "ok", 0.0, 0.0, "no benchmark row is a training row")
    left_out = data["leakage"]["policy"] == "remove"
    return Finding(
        "benchmark-leakage",
        "note" if left_out or not counts["exact"] else "problem",
        total,
        0.0,
        f"{said}; they were left out of training" if left_out else said,
        "" if left_out else "`data.leakage: remove` leaves them out of training",
    )


def check_remembered(data: Mapping[str, Any]) -> Finding | None:
    """Whether what must be remembered was trained on."""
    counts = data["leakage"].get("sets", {}).get("remember")
    if counts is None:
        return None
    total, said = _apart(counts, "rows of `evaluate.remember`")
    if not total:
        fine = "no row of `evaluate.remember` is a training row"
        return Finding("trained-on-remembered", "ok", 0.0, 0.0, fine)
    left_out = data["leakage"]["policy"] == "remove"
    return Finding(
        "trained-on-remembered",
        "note",
        total,
        0.0,
        f"{said}; they were left out of training"
        if left_out
        else f"{said}: their loss says how well they were learned, not what is forgotten",
        "" if left_out else "name other text under `evaluate.remember`",
    )


def _apart(counts: Mapping[str, int], what: str) -> tuple[int, str]:
    """How many rows of a set that must not be trained on were, as a number and in words."""
    said = f"{count(counts['exact'])} {what} are training rows, {count(counts['near'])} nearly so"
    return counts["exact"] + counts["near"], said


def check_duplicates(data: Mapping[str, Any]) -> Finding | None:
    """Whether much of the training data is said more than once."""
    facts = data.get("duplicates")
    if facts is None or facts["exact"] is None:
        return None
    near = facts["near"] or 0
    total = facts["exact"] + facts["distinct"]
    share = (facts["exact"] + near) / max(total, 1)
    nearly = "too many to look for near ones" if facts["near"] is None else f"{count(near)} nearly"
    said = f"{count(facts['exact'])} of {plural(total, 'training row')} repeat an earlier one; "
    said += nearly
    if facts["most"]:
        most = facts["most"][0]
        said += f"; `{most['where']}` stands there {count(most['rows'])} times"
    if facts["policy"] == "remove":
        left_out = f"{said}; the first of each was kept"
        return Finding("duplicates", "ok", share, REPEATED, left_out)
    if share <= REPEATED:
        return Finding("duplicates", "ok", share, REPEATED, said)
    return Finding(
        "duplicates",
        "warning",
        share,
        REPEATED,
        f"{said}: they weigh more than the rest, and are learned by heart first",
        "`data.duplicates: remove` keeps the first of each; `data.json` lists the most repeated",
    )


def check_conflicts(data: Mapping[str, Any]) -> Finding | None:
    """Whether the same text stands there with another label or answer."""
    facts = data.get("label_conflicts")
    if facts is None:
        return None
    share = facts["rows"] / max(data["train"]["rows"], 1)
    across = sum(facts["held_out"].values())
    what = "label" if facts["labeled"] else "answer"
    if not facts["rows"] and not across:
        return Finding("label-conflicts", "ok", 0.0, CONTRADICTED, f"no text has a second {what}")
    first = facts["pairs"][0]
    said = (
        f"{plural(facts['texts'], 'text')} of {plural(facts['rows'], 'training row')} "
        f"{'has' if facts['texts'] == 1 else 'have'} more than one {what}"
    )
    if across:
        said += f"; training rows contradict {plural(across, 'held-out row')}"
    return Finding(
        "label-conflicts",
        "warning" if facts["labeled"] and share > CONTRADICTED else "note",
        share,
        CONTRADICTED,
        f"{said}: see `{first['left']}` and `{first['right']}`",
        f"see `label_conflicts` in `data.json`, and keep the {what} that is right",
    )
