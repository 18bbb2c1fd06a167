"""Runs to interrupt: how to start them, what they leave, and whether two ended the same."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).with_name("fork_server.py")
PATIENCE = 240
STEPS = 12
STEP = "peftkit.train.loop:train"
"""Called for each step, as it begins."""
COLORS = ("red", "green", "blue", "white", "black", "gray", "pink", "brown")


@dataclass
class Done:
    """A run that has ended, and what it told on its way."""

    code: int
    told: str


@dataclass
class Forks:
    """Starts runs as forks of one process that has imported everything."""

    folder: Path
    server: subprocess.Popen[str] = field(init=False)
    started: int = 0

    def __post_init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, recipe: Path, run: Path, *options: object, **order: Any) -> tuple[int, Path]:
        """The process id of a new run, and the file that keeps what it tells."""
        self.started += 1
        log = self.folder / f"{self.started}.log"
        log.touch()
        arguments = ["finetune", str(recipe), "--out", str(run), *map(str, options)]
        return self.ask({"arguments": arguments, "log": str(log), **order})["pid"], log

    def wait(self, started: tuple[int, Path]) -> Done:
        pid, log = started
        return Done(self.ask({"pid": pid})["code"], log.read_text())

    def finish(self, recipe: Path, run: Path, *options: object, **order: Any) -> Done:
        return self.wait(self.start(recipe, run, *options, **order))

    def ask(self, order: dict[str, Any]) -> dict[str, int]:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return dict(json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        self.server.communicate()  # which closes its stdin, and so ends it


def write_recipe(folder: Path, base: Path) -> Path:
    """A run of 12 steps that has everything which could go wrong on resume.

    Dropout, packing, micro-batches, several epochs, evaluation in between, and a save at every
    third step. Threads are given, because as many as are fastest may be another number each time.
    """
    rows = [
        {
            "instruction": f"Say number {number} in {COLORS[number % len(COLORS)]}.",
            "output": COLORS[number % len(COLORS)],
        }
        for number in range(45)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""\
name: faults
seed: 3
base: {{model: {base}}}
adapter: {{method: lora, rank: 4, dropout: 0.1}}
data: {{train: train.jsonl, validation: {{fraction: 0.1}}, max_length: 96, leakage: warn}}
train:
  steps: {STEPS}
  batch: {{rows: 8, micro_rows: 2}}
  learning_rate: 1e-2
  warmup: 0.2
  save_every: 3
  keep: 2
  threads: 1
evaluate: {{every: 4, samples: 1, rows: 4}}
"""
    )
    return recipe


def at(place: str, nth: int = 1, *, after: tuple[str, int] | None = None, do: Any) -> Any:
    """Something to do to a run at a call of a function: the `nth`, counted from another on."""
    return {"at": place, "nth": nth, "do": do, "after": after and list(after)}


def killed_in_step(step: int) -> Any:
    """SIGKILL once a step has begun."""
    return at(STEP, step, do=["signal", signal.SIGKILL])


def until(true: Callable[[], object], what: str) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"never came: {what}")
        time.sleep(0.01)


def digest(run: Path) -> str:
    """Sha256 of the finished adapter's weights."""
    return hashlib.sha256((run / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()


def outcome(run: Path) -> tuple[str, Sequence[Any], Sequence[Any]]:
    """What two runs must agree on: the adapter's bytes, each step's loss, each evaluation's."""
    logs = [
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        for name in ("steps.jsonl", "evaluations.jsonl")
    ]
    steps = [(line["step"], line["loss"], line["grad_norm"]) for line in logs[0]]
    return digest(run), steps, [(line["step"], line["loss"]) for line in logs[1]]


def taken(run: Path) -> list[str]:
    """The logged lines of the steps that were taken."""
    log = run / "steps.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def leftovers(run: Path) -> list[str]:
    """What a save that did not come to its end would leave."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*.tmp-*"))


def saved(run: Path) -> dict[str, bytes]:
    """Every file of every checkpoint."""
    files = sorted((run / "checkpoints").glob("step-??????/*"))
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a small file system at `folder`, which stays mounted."""
    command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0755", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
