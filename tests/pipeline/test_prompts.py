"""A whole run of a prefix that a network computes, and what cannot be asked of it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
RunCli = Callable[..., subprocess.CompletedProcess[str]]
PREFIX = "adapter={method: prefix, tokens: 4, projection: true}"


def test_a_prefix_trains_with_one_text_a_row(cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    done = cli("finetune", recipe, "--set", PREFIX, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "packing is off: the adapter stands before one text a row" in done.stderr
    assert "Warning" not in done.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["validation"]["loss"] < metrics["baselines"]["base"]["loss"]
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert config["prefix_projection"] is False
    again = cli("evaluate", tmp_path / "run", "--data", tmp_path / "test.jsonl", "--json")
    found = json.loads(again.stdout)
    (measured,) = (found if isinstance(found, dict) else {}).values()
    assert measured["loss"] == pytest.approx(metrics["test"]["loss"], abs=1e-6)


def test_its_blocks_cannot_run_again(cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    asked = ("--set", PREFIX, "--set", "train.recompute=all", "--out", tmp_path / "run")
    done = cli("finetune", recipe, *asked)
    assert done.returncode == 2
    assert "train.recompute: all, but a block that runs again would find" in done.stderr
