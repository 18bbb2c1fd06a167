"""The arms: what each one sets beside the recipe that all of its group share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from material import MATERIAL

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
  max_length: 256
  too_long: truncate
train: {{steps: 120, batch: {{rows: 16}}, learning_rate: 3e-3, threads: 1}}
evaluate: {{every: 1000}}
"""
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


def _full(name: str, **more: Any) -> Arm:
    settings = {"adapter.method": "full", "train.learning_rate": RATE}
    return Arm(
        name, "regularizers", (settings | {k.replace("__", "."): v for k, v in more.items()},)
    )


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
    return Arm(f"lora {targets} {rate:g}", "targets", (settings,))


def _domain(name: str, text: str | None) -> Arm:
    first = {
        "adapter.method": "lora",
        "adapter.rank": 16,
        "train.learning_rate": 1e-2,
        "train.steps": 300,
        "data.train": f"{{source: {text}, format: text}}",
    }
    if text is None:
        return Arm(name, "domain", ({},), ("topics",))
    return Arm(name, "domain", (first, {}), ("text", "topics"))


REPLAY = "{source: general.txt, format: text, fraction: 0.05}"
ARMS = (
    _full("full"),
    _full("replay 5 %", data__replay=REPLAY),
    *(
        _full(f"ewc {s}", train__regularize=_entry("ewc", s, ", rows: 64"))
        for s in (100, 300, 1000, 3000)
    ),
    *(_full(f"l2sp {s}", train__regularize=_entry("l2sp", s)) for s in (0.01, 0.03, 0.1, 0.3)),
    *(_full(f"kl {s}", train__regularize=_entry("kl", s, ", rows: 2")) for s in (0.3,)),
    *(_lora("all-linear", 8, rate) for rate in (3e-3, 1e-2, 3e-2)),
    *(_lora("attention", 22, rate) for rate in (3e-3, 1e-2, 3e-2)),
    _domain("task", None),
    _domain("python, then task", "python.txt"),
    _domain("shakespeare, then task", "shakespeare.txt"),
)
