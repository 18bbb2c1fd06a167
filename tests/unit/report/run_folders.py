"""Run folders as a run would leave them, made up so that a report has something to show."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
# Which intent does a customer have? Ten answers, one word each.
name: intents
seed: 0
base:
  model: builtin:tiny
adapter:
  method: lora
  rank: 16
  alpha: 32
data:
  train:
    - {source: data/train.jsonl, format: completion}
  validation: {fraction: 0.1, by: random}
  test: data/test.jsonl
train:
  steps: 300
  batch: {rows: 16}
  learning_rate: 2e-4
"""

SENTENCE = (
    "the adapter helped: exact match on 100 test rows went from 0.0 % to 93.0 % "
    "(95 % interval of the change: +88.0 to +98.0 points)"
)


def resolved(steps: int, **changed: Any) -> dict[str, Any]:
    recipe = {
        "name": "intents",
        "seed": 0,
        "base": {"model": "builtin:tiny", "revision": "main", "dtype": "auto"},
        "adapter": {"method": "lora", "rank": 16, "alpha": 32, "targets": "all-linear"},
        "data": {
            "train": [{"source": "data/train.jsonl", "format": "completion"}],
            "validation": {"fraction": 0.1, "by": "random"},
            "max_length": 256,
            "packing": True,
        },
        "train": {"steps": steps, "learning_rate": 0.0002, "schedule": "cosine", "warmup": 0.05},
    }
    for key, value in changed.items():
        section, name = key.split("__") if "__" in key else ("", key)
        target: Any = recipe[section] if section else recipe
        target[name] = value
    return recipe


def step_lines(steps: int, *, seed: int = 0, floor: float = 0.3) -> list[dict[str, float | None]]:
    random = np.random.default_rng(seed)
    lines: list[dict[str, float | None]] = []
    for step in range(1, steps + 1):
        done = step / steps
        mean = floor + 3.8 * math.exp(-7 * done)
        warm = min(1.0, done / 0.05)
        rate = 2e-4 * warm * (0.5 + 0.5 * math.cos(math.pi * done))
        lines.append(
            {
                "step": step,
                "loss": round(mean * float(np.exp(0.16 * random.standard_normal())), 5),
                "grad_norm": round(
                    0.4 + 1.4 * math.exp(-5 * done) * float(random.gamma(9, 1 / 9)), 5
                ),
                "learning_rate": rate,
                "tokens": 512,
                "trained_tokens": 130,
                "seconds": 0.21,
            }
        )
    return lines


def evaluation_lines(steps: int, *, floor: float = 0.31) -> list[dict[str, Any]]:
    lines = []
    for at in range(7):
        loss = floor + 3.79 * math.exp(-1.15 * at)
        spread = 0.05 + 0.06 * loss
        interval = [round(loss - spread, 4), round(loss + spread, 4)]
        lines.append({"step": at * steps // 6, "loss": round(loss, 4), "interval": interval})
    return lines


def scores(loss: float, right: float, rows: int = 60) -> dict[str, float]:
    return {
        "rows": rows,
        "tokens": rows * 9,
        "bytes": rows * 15,
        "loss": loss,
        "loss_per_byte": round(loss * 0.6, 4),
        "perplexity": round(math.exp(loss), 4),
        "exact_match": right,
        "stopped": min(1.0, right + 0.05),
        "repetitive": round(0.4 * (1 - right), 3),
    }


def metrics() -> dict[str, Any]:
    base = {**scores(4.104, 0.0), "test": scores(4.151, 0.0, 100)}
    probe = {**scores(1.204, 0.62), "test": scores(1.251, 0.6, 100)}
    scratch = {**scores(1.934, 0.41), "test": scores(1.961, 0.39, 100)}
    return {
        "validation": scores(0.318, 0.9333),
        "test": scores(0.342, 0.93, 100),
        "baselines": {"base": base, "scratch": scratch, "probe": probe},
        "difference": {
            "validation": {
                "loss": change(4.104, 0.318, -3.92, -3.61),
                "exact_match": change(0.0, 0.9333, 0.86, 1.0),
            },
            "test": {
                "loss": change(4.151, 0.342, -3.94, -3.66),
                "exact_match": change(0.0, 0.93, 0.88, 0.98),
            },
        },
        "remember": [
            {"source": "general.txt", "before": {"loss": 1.302}, "after": {"loss": 1.911}},
            {"source": "code.txt", "before": {"loss": 2.104}, "after": {"loss": 2.098}},
        ],
        "speed": {
            "tokens_per_second": 5200.0,
            "seconds": 64.2,
            "cpu_seconds": 60.1,
            "tokens": 331_000,
            "peak_memory_bytes": 612_000_000,
        },
        "verdict": {"helped": "yes", "sentence": SENTENCE},
    }


def change(base: float, adapted: float, low: float, high: float) -> dict[str, float]:
    moved = {"base": base, "adapted": adapted, "change": round(adapted - base, 4)}
    return {**moved, "low": low, "high": high}


def data() -> dict[str, Any]:
    def split(name: str, rows: int) -> dict[str, Any]:
        return {
            "rows": rows,
            "tokens": rows * 31,
            "trained_tokens": rows * 9,
            "cut": 0,
            "dropped": 2 if name == "train" else 0,
            "skipped": [{"where": "data/train.jsonl:12", "why": "`completion` is empty"}]
            if name == "train"
            else [],
            "longest": 84,
            "sources": [{"source": f"data/{name}.jsonl", "rows": rows, "tokens": rows * 31}],
            "fill": 0.97,
        }

    return {
        "train": split("train", 1600),
        "validation": split("validation", 60),
        "test": split("test", 100),
        **checks(),
        "leakage": {
            "exact": 0,
            "near": 1,
            "pairs": [
                {
                    "kind": "near",
                    "similarity": 0.86,
                    "left": "data/train.jsonl:311",
                    "right": "data/test.jsonl:9",
                    "text": "I was charged twice for the same order, please refund one of them",
                }
            ],
        },
    }


def checks() -> dict[str, Any]:
    """What is said of the rows beyond their number."""
    counts = {"billing": 640, "delivery": 510, "account": 380, "returns": 62, "shipping": 8}
    held = {name: number // 20 for name, number in counts.items()}
    verdict = {
        "rows": 1600,
        "found": {"shortest": 3, "repeated_words": 1},
        "limits": {"shortest": 3, "repeated_words": 0.2, "refusals": 0},
        "listed": [{"where": "data/train.jsonl:44", "filter": "shortest", "figure": 1}],
    }
    return {
        "balance": {
            "train": {"counts": counts, "majority": 0.4, "lacking": []},
            "validation": {"counts": held, "majority": 0.4, "lacking": ["shipping"]},
            "ratio": 80.0,
            "of": "rows",
        },
        "languages": {
            name: {
                "rows": 60,
                "languages": {"en": 0.9, "de": 0.06, "unknown": 0.04},
                "scripts": {"Latin": 0.99, "Greek": 0.01},
                "emoji": 0.1,
            }
            for name in ("train", "validation", "test")
        },
        "filters": {"left_out": None, "counted": verdict},
        "preprocessing": {
            "rows": 500,
            "bytes_per_token": 3.1,
            "tokens_per_word": 1.7,
            "unknown": 0.012,
            "byte_tokens": 0.0,
            "reference": {
                "bytes_per_token": 3.4,
                "tokens_per_word": 1.5,
                "unknown": 0.0,
                "byte_tokens": 0.0,
                "of": "remember",
            },
        },
        "label_noise": {
            "rows": 1200,
            "agreement": 0.81,
            "majority": 0.4,
            "suspected": 61,
            "sure": 31,
            "listed": [
                {
                    "where": f"data/train.jsonl:{7 * at}",
                    "given": "billing",
                    "suspected": "returns",
                    "confidence": 0.9 - at / 100,
                }
                for at in range(1, 31)
            ],
        },
        "duplicates": {
            "exact": 4,
            "near": 9,
            "distinct": 1596,
            "policy": "warn",
            "most": [{"rows": 3, "where": "data/train.jsonl:5", "text": "Where is my parcel?"}],
        },
        "label_conflicts": {
            "rows": 2,
            "texts": 1,
            "held_out": {},
            "labeled": True,
            "pairs": [
                {
                    "left": "data/train.jsonl:5",
                    "right": "data/train.jsonl:9",
                    "labels": ["delivery", "returns"],
                    "text": "Where is my parcel?",
                }
            ],
        },
    }


def plan(steps: int) -> dict[str, Any]:
    return {
        "parameters": 1_370_000,
        "trainable": 28_672,
        "share": 0.0209,
        "rows": 1600,
        "tokens_per_epoch": 49_600,
        "steps": steps,
        "epochs": 3.0,
        "rows_per_step": 16,
        "tokens_per_step": 512,
        "memory_bytes": {"training": 640_000_000, "evaluation": 420_000_000},
        "disk_bytes": 3_400_000,
    }


def lock() -> dict[str, Any]:
    return {
        "peftkit": "0.1.0",
        "recipe": "5f1c" * 16,
        "base": {
            "model": "builtin:tiny",
            "commit": None,
            "digest": "9ab0" * 16,
            "parameters": 1_370_000,
        },
        "data": {"train": "01ef" * 16, "validation": "22aa" * 16, "test": "7d3c" * 16},
        "versions": {"python": "3.11.7", "torch": "2.9.0", "transformers": "5.3.0", "peft": "0.21"},
        "machine": {
            "cpu": "AMD EPYC 9B14 96-Core Processor",
            "cores": 2,
            "memory_gib": 23.0,
            "gpu": None,
        },
        "choices": {
            "threads": 1,
            "dtype": "float32",
            "micro_rows": 8,
            "device": "cpu",
            "packing": True,
        },
    }


def findings() -> list[dict[str, Any]]:
    def finding(name: str, severity: str, said: str, advice: str = "") -> dict[str, Any]:
        return {
            "id": name,
            "severity": severity,
            "figure": 0.468,
            "threshold": 0.2,
            "sentence": said,
            "advice": advice,
        }

    return [
        finding("no-effect", "ok", "the change of the loss is far from zero"),
        finding("stop-token", "ok", "98 % of the answers end by themselves"),
        finding(
            "forgetting",
            "warning",
            "loss on general.txt rose by 47 %, from 1.302 to 1.911",
            "mix some of it in with `data.replay`, or lower `train.learning_rate`",
        ),
        finding(
            "leakage",
            "note",
            "1 test row is nearly the same as a training row",
            "set `data.leakage: remove` to leave it out",
        ),
        finding(
            "stopped-too-early",
            "note",
            "validation loss still fell in the last sixth of the steps",
            "try `train.steps: 450`",
        ),
    ]


def samples(count: int = 12) -> list[dict[str, Any]]:
    asked = [
        ("My card was charged twice for order 1182, can you look into it?", "billing"),
        ("How do I reset the password on the tablet app?", "account"),
        ("Where is my parcel? It was due on Tuesday.", "delivery"),
        ("The lamp arrived with a cracked shade.", "returns"),
        ("Do you ship to the Faroe Islands?", "delivery"),
    ]
    made = []
    for at in range(count):
        prompt, answer = asked[at % len(asked)]
        right = at % 5 != 4
        made.append(
            {
                "where": f"data/test.jsonl:{at + 1}",
                "prompt": f"Customer: {prompt}\nIntent:",
                "expected": answer,
                "before": " the the customer said that the the order was",
                "after": answer if right else "billing",
                "right": right,
            }
        )
    return made


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_run(run: Path, *, steps: int = 300, seed: int = 0, **changed: Any) -> Path:
    """A whole run folder; `changed` sets keys of the resolved recipe: `adapter__rank=4`."""
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    write(run / "recipe.resolved.json", resolved(steps, **changed))
    write(run / "lock.json", lock())
    write(run / "plan.json", plan(steps))
    write(run / "data.json", data())
    write(run / "metrics.json", metrics())
    write(run / "findings.json", findings())
    write(run / "samples.json", samples())
    write_lines(run / "steps.jsonl", step_lines(steps, seed=seed, floor=0.3 + 0.1 * seed))
    write_lines(run / "evaluations.jsonl", evaluation_lines(steps, floor=0.31 + 0.1 * seed))
    write(run / "adapter" / "adapter_config.json", {"peft_type": "LORA"})
    (run / "adapter" / "adapter_model.safetensors").write_bytes(bytes(116_000))
    return run
