"""Whole runs on a tiny base: a recipe to write, and the command line in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = ("red", "green", "blue", "white", "black", "gray", "pink", "brown")
RunCli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> RunCli:
    """Runs `peftkit …` as a person would, in an empty folder."""

    def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "peftkit", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            check=False,
        )

    return run


def write_rows(path: Path, count: int, *, offset: int = 0) -> Path:
    """Little questions with one-word answers."""
    rows = [
        {
            "instruction": f"Say number {offset + number} in {WORDS[number % len(WORDS)]}.",
            "output": WORDS[number % len(WORDS)],
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> Path:
    """A recipe of 12 steps on the tiny base, with test rows and something to remember."""
    write_rows(tmp_path / "train.jsonl", 64)
    write_rows(tmp_path / "test.jsonl", 24, offset=1000)
    (tmp_path / "general.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""\
name: tiny
seed: 3
base: {{model: {tiny_llama}}}
adapter: {{method: lora, rank: 4, dropout: 0.1}}
data:
  train: train.jsonl
  test: test.jsonl
  validation: {{fraction: 0.1}}
  max_length: 96
  too_long: truncate
  leakage: warn
train: {{steps: 12, batch: {{rows: 8}}, learning_rate: 1e-2, save_every: 4, keep: 2}}
evaluate: {{every: 5, samples: 3, remember: general.txt}}
"""
    )
    return path
