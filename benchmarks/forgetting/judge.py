"""What the runs say together: forgetting of each arm, and curves compared where they meet."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

Runs = Sequence[dict[str, Any]]


def summarize(runs: Runs) -> dict[str, Any]:
    """Means of each arm, and what each question comes to."""
    return {
        "arms": {name: _means(_of(runs, name)) for name in dict.fromkeys(r["arm"] for r in runs)},
        "replay": compare_replay(runs),
        "ewc against l2sp": compare_curves(runs),
        "targets": compare_targets(runs),
        "domain": compare_domains(runs),
    }


def compare_replay(runs: Runs) -> dict[str, Any]:
    """Share of the forgetting that 5 % of replay removes, and what the target pays, by seed."""
    pairs = _pairs(runs, "full", "replay 5 %")
    removed = [1 - forgotten(replay) / forgotten(full) for full, replay in pairs]
    return {"removed": removed, "target_cost": [r["target"] - f["target"] for f, r in pairs]}


def compare_curves(runs: Runs) -> list[dict[str, float]]:
    """For each seed, where both curves have it: EWC's general loss less L2-SP's at one target loss.

    And the target loss likewise at one general loss; both are below 0 where EWC is better.
    """
    found = []
    for seed in sorted({run["seed"] for run in runs}):
        ours, theirs = (_curve(runs, kind, seed) for kind in ("ewc", "l2sp"))
        if min(len(ours), len(theirs)) < 2:
            continue
        found.append(
            {
                "seed": seed,
                "general_at_one_target": _gap(ours, theirs),
                "target_at_one_general": _gap(
                    [(g, t) for t, g in ours], [(g, t) for t, g in theirs]
                ),
            }
        )
    return found


def compare_targets(runs: Runs) -> dict[str, Any]:
    """All linear layers against attention alone, each at the best rate of the first seed."""
    best = {}
    for kind in ("all-linear", "attention"):
        tried = [r for r in runs if r["arm"].startswith(f"lora {kind} ") and r["seed"] == 0]
        best[kind] = min(tried, key=lambda run: float(run["target"]))["arm"]
    pairs = _pairs(runs, best["all-linear"], best["attention"])
    return {
        "best": best,
        "attention_has_more": pairs[0][1]["trainable"] / pairs[0][0]["trainable"] - 1,
        "better_by": [theirs["target"] - ours["target"] for ours, theirs in pairs],
    }


def compare_domains(runs: Runs) -> dict[str, Any]:
    """Accuracy and loss after each domain less those of the task alone, by seed."""
    found = {}
    for name in ("python, then task", "shakespeare, then task"):
        pairs = _pairs(runs, "task", name)
        found[name] = {
            key: [after[key] - alone[key] for alone, after in pairs]
            for key in ("accuracy", "target")
        }
    return found


def forgotten(run: dict[str, Any]) -> float:
    """How much worse general text is predicted than by the base, in nats a token."""
    return float(run["general"] - run["base_general"])


def _of(runs: Runs, arm: str) -> list[dict[str, Any]]:
    return [run for run in runs if run["arm"] == arm]


def _pairs(runs: Runs, one: str, other: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Runs of two arms, seed by seed, where both were taken."""
    first, second = ({run["seed"]: run for run in _of(runs, arm)} for arm in (one, other))
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def _means(runs: Runs) -> dict[str, Any]:
    found = {}
    for key in ("target", "general", "accuracy", "cpu_seconds"):
        values = [run[key] for run in runs if run[key] is not None]
        if values:
            found[key] = {"mean": statistics.mean(values), "low": min(values), "high": max(values)}
    if "general" in found:
        found["forgotten"] = {"mean": statistics.mean(map(forgotten, runs))}
    return found | {"trainable": runs[0]["trainable"], "seeds": len(runs)}


def _curve(runs: Runs, kind: str, seed: int) -> list[tuple[float, float]]:
    own = [r for r in runs if r["arm"].split()[0] == kind and r["seed"] == seed]
    return sorted((run["target"], run["general"]) for run in own)


def _gap(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> float:
    """Mean of one curve less the other, over the stretch where both are; NaN-free or an error."""
    ours, theirs = sorted(ours), sorted(theirs)
    low, high = max(ours[0][0], theirs[0][0]), min(ours[-1][0], theirs[-1][0])
    if low >= high:
        raise ValueError("the curves do not meet: sweep further strengths")
    at = np.linspace(low, high, 50)
    both = (np.interp(at, *zip(*curve, strict=True)) for curve in (ours, theirs))
    first, second = both
    return float((first - second).mean())
