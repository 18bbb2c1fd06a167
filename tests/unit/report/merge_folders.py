"""Folders of merges as `peftkit merge` would leave them, made up for pages to show."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LOSSES = {
    "chat": {"base": 4.6, "chat": 2.9, "code": 4.4, "merged": 3.1},
    "code": {"base": 5.1, "chat": 4.9, "code": 3.0, "merged": 4.2},
    "control": {"base": 2.2, "chat": 2.5, "code": 2.4, "merged": 2.3},
}


def write_merge(folder: Path, *, searched: bool = True, judged: bool = True) -> Path:
    """The folder of a merge of two adapters."""
    folder.mkdir(parents=True)
    write(folder / "merge.json", record())
    if judged:
        write(folder / "metrics.json", metrics())
        write(folder / "findings.json", findings())
        write(folder / "samples.json", samples())
    if searched:
        write(folder / "search.json", search())
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def record() -> dict[str, Any]:
    layers = {f"model.layers.{at}.mlp.up_proj": 0.01 * at for at in range(30)}
    return {
        "name": "both",
        "expression": "chat + 0.7*code",
        "parents": [{"name": name, "digest": "ab" * 32} for name in ("chat", "code")],
        "recipe": {"expression": "chat + 0.7*code", "output": {"rank": 8}},
        "versions": {"peftkit": "0.1.0"},
        "error": {"relative": 0.12, "layers": layers},
        "preflight": {
            "formula": "1*chat + 0.7*code",
            "method": "sum",
            "terms": [term("chat", 1.0), term("code", 0.7)],
            "merged": term("merged", 1.0),
            "pairs": [
                {
                    "pair": ["chat", "code"],
                    "cosine": 0.0829,
                    "overlap": 0.185,
                    "sign_conflict": 0.474,
                    "shared_modules": 35,
                }
            ],
            "canceled": 0.021,
            "error": 0.12,
        },
    }


def term(name: str, weight: float) -> dict[str, Any]:
    return {"name": name, "weight": weight, "norm": 10.4, "modules": 35, "ranks": [8, 16]}


def change(base: float, adapted: float) -> dict[str, dict[str, float]]:
    moved = adapted - base
    ends = {"low": moved - 0.1, "high": moved + 0.1}
    return {"loss": {"base": base, "adapted": adapted, "change": moved, **ends}}


def metrics() -> dict[str, Any]:
    sets = []
    for name, losses in LOSSES.items():
        best = min(("chat", "code"), key=lambda each: losses[each])
        gained = losses["base"] - losses[best]
        share = (losses["base"] - losses["merged"]) / gained
        control = name == "control"
        sets.append(
            {
                "name": name,
                "role": "control" if control else "task",
                "sources": [f"{name}.jsonl"],
                "metric": "loss",
                "rows": 100,
                "models": {
                    model: {"rows": 100, "tokens": 5000, "loss": loss, "perplexity": 2**loss}
                    for model, loss in losses.items()
                },
                "against_base": {
                    model: change(losses["base"], loss)
                    for model, loss in losses.items()
                    if model != "base"
                },
                "against_best_parent": change(losses[best], losses["merged"]),
                "best_parent": best,
                "retained": None
                if control
                else {"share": share, "low": share - 0.04, "high": share + 0.04},
                "performance": {"merged": {"share": 0.905, "low": 0.89, "high": 0.92}},
                **({"holdout": {"searched_rows": 100}} if control else {}),
            }
        )
    sentence = "it does a part of what its parents do: `chat` went from 4.600 to 3.100 nats"
    return {
        "task": "causal-lm",
        "sets": sets,
        "left_out": {"other": "its head has other labels"},
        "verdict": {"helped": "unclear", "sentence": sentence},
    }


def search() -> dict[str, Any]:
    tried = [0.0, 0.4, 0.8, 1.2, 0.6, 0.7]
    return {
        "over": {"code": [0.0, 1.2]},
        "objective": "code",
        "metric": "loss",
        "direction": "improve",
        "subject_to": {"control": 0.9},
        "way": "narrowing",
        "best": {"code": 0.7},
        "trials": [
            {
                "numbers": {"code": at},
                "figures": {
                    "code": 5.1 - at,
                    "control": 2.2 + at / 8,
                    "control, share of the base": 1 - at / 8,
                },
                "kept": at <= 0.8,
            }
            for at in tried
        ],
    }


def findings() -> list[dict[str, Any]]:
    return [
        {
            "id": "task-interference",
            "severity": "warning",
            "figure": 0.43,
            "threshold": 0.8,
            "sentence": "`code` keeps 43 % (39 to 47 %) of what `code` gained over the base",
            "advice": "give it a larger number",
        },
        {
            "id": "no-effect",
            "severity": "ok",
            "figure": -1.5,
            "threshold": 0.0,
            "sentence": "the largest change from the base is on `chat`",
            "advice": "",
        },
    ]


def samples() -> list[dict[str, Any]]:
    return [
        {
            "set": name,
            "where": f"{name}.jsonl:{row}",
            "prompt": "Once upon a time",
            "expected": None,
            "said": {model: f"{model} says {row}" for model in ("base", "chat", "code", "merged")},
            "right": None,
        }
        for name in LOSSES
        for row in range(1, 4)
    ]
