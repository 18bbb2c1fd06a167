"""The arms: what each one sets beside the recipe that all of its group share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from material import MATERIAL

from peftkit.recipe.sections.train import TrainSection

BASE = f"base: {{model: {MATERIAL}/stories260k-hf}}"
TEXT = f"""\
{BASE}
data:
  train: {{source: python.txt, format: text}}
  validation: {{source: python-valid.txt, format: text}}
  max_length: 96
train: {{steps: 150, batch: {{rows: 8}}, threads: 1}}
evaluate: {{every: 1000, rows: 96, remember: {{source: remember.txt, format: text}}}}
"""
TOPICS = f"""\
base: {{model: {MATERIAL}/stories260k-hf, task: classification}}
adapter: {{method: lora, rank: 8}}
data:
  train: topics-train.jsonl
  validation: {{source: topics-valid.jsonl}}
  max_length: 128
  too_long: truncate
train: {{steps: 60, batch: {{rows: 8}}, learning_rate: 2e-3, threads: 1}}
evaluate: {{every: 1000}}
"""
SEEDS = (0, 1, 2)
RECIPES = Path(__file__).parents[2] / "recipes" / "forgetting"
STAGES = {"text": TEXT, "topics": TOPICS}
RATE = 3e-3
"""The best of four for full training in an earlier, smaller trial."""


@dataclass(frozen=True)
class Arm:
    """One way of training, taken with every seed."""

    name: str
    group: str
    settings: tuple[dict[str, Any], ...]
    stages: tuple[str, ...] = ("text",)
    seeds: tuple[int, ...] = SEEDS


BEST = 1e-2
"""The best of three for LoRA on either kind of layers, with the first seed."""
FIRST = (0,)
"""The seed that a rate is chosen with, and that the ends of a sweep are taken with."""


def _full(name: str, seeds: tuple[int, ...] = SEEDS, **more: Any) -> Arm:
    settings = {"adapter.method": "full", "train.learning_rate": RATE}
    named = {key.replace("__", "."): value for key, value in more.items()}
    return Arm(name, "regularizers", (settings | named,), seeds=seeds)


def _entry(kind: str, strength: float, source: str = "") -> str:
    more = f", source: general.txt, format: text{source}" if source else ""
    return f"[{{{kind}: {{strength: {strength}{more}}}}}]"


def _lora(targets: str, rank: int, rate: float) -> Arm:
    names = {"attention": "[q_proj, k_proj, v_proj, o_proj]"}
    settings = {
        "adapter.method": "lora",
        "adapter.rank": rank,
        "adapter.targets": names.get(targets, targets),
        "train.learning_rate": rate,
    }
    seeds = SEEDS if rate == BEST else FIRST
    return Arm(f"lora {targets} {rate:g}", "targets", (settings,), seeds=seeds)


def _domain(name: str, text: str | None) -> Arm:
    first = {
        "adapter.method": "lora",
        "adapter.rank": 16,
        "train.learning_rate": 1e-2,
        "train.steps": 150,
        "data.train": f"{{source: {text}, format: text}}",
    }
    if text is None:
        return Arm(name, "domain", ({},), ("topics",))
    return Arm(name, "domain", (first, {}), ("text", "topics"))


def _recipe(name: str, **settings: Any) -> Arm:
    """A recipe that ships, or what it would be without its remedy."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    stage = "replay" if named else name
    return Arm(f"recipe {name}", "recipes", (named | {"train.threads": 1},), (stage,), FIRST)


REPLAY = "{source: general.txt, format: text, fraction: 0.05}"
LAYERWISE = (
    _full("layer decay 0.9", train__layer_decay=0.9),
    _full("layer decay 0.7", train__layer_decay=0.7),
    _full("unfreeze by plateau", train__unfreeze="{every: plateau}"),
)
"""Taken where recipes know the keys."""
ARMS = (
    _full("full"),
    _full("replay 5 %", data__replay=REPLAY),
    *(
        _full(f"ewc {s}", seeds, train__regularize=_entry("ewc", s, ", rows: 64"))
        for s, seeds in ((100, FIRST), (300, SEEDS), (1000, SEEDS), (3000, FIRST))
    ),
    *(
        _full(f"l2sp {s}", seeds, train__regularize=_entry("l2sp", s))
        for s, seeds in ((0.01, FIRST), (0.03, SEEDS), (0.1, SEEDS), (0.3, FIRST))
    ),
    _full("kl 0.3", train__regularize=_entry("kl", 0.3, ", rows: 2")),
    *(_lora("all-linear", 8, rate) for rate in (3e-3, 1e-2, 3e-2)),
    *(_lora("attention", 22, rate) for rate in (3e-3, 1e-2, 3e-2)),
    _domain("task", None),
    _domain("python, then task", "python.txt"),
    _domain("shakespeare, then task", "shakespeare.txt"),
    _recipe("plain", data__replay="[]"),
    *(_recipe(name) for name in ("replay", "ewc", "kl")),
    *(LAYERWISE if "layer_decay" in TrainSection.model_fields else ()),
)
