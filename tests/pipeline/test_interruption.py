"""Interrupted or not, a run ends the same; and one folder has one run."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PATIENCE = 240
RunCli = Callable[..., subprocess.CompletedProcess[str]]


def digest(run: Path) -> str:
    return hashlib.sha256((run / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()


def losses(run: Path) -> list[float]:
    lines = (run / "steps.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def start(recipe: Path, run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "peftkit", "finetune", str(recipe), "--out", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Wait until `step` is logged, so that the signal comes at no particular moment after it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "steps.jsonl"
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was never reached")


@pytest.fixture(scope="module")
def long_recipe(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough steps that a signal always comes before the last one; no threads to be timed."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "text.txt").write_text(
        "\n".join(f"Line {n} tells of the {n * 7 % 31} hats of number {n}." for n in range(900))
    )
    path = folder / "recipe.yaml"
    path.write_text(
        f"""\
base: {{model: {tiny_llama}}}
adapter: {{rank: 4, dropout: 0.1}}
data: {{train: {{source: text.txt, format: text}}, max_length: 64}}
train:
  steps: 150
  batch: {{rows: 8}}
  learning_rate: 1e-2
  save_every: 20
  keep: 2
  threads: 1
evaluate: {{every: 30, samples: 1, rows: 16}}
"""
    )
    return path


@pytest.fixture(scope="module")
def whole(long_recipe: Path) -> Path:
    run = long_recipe.parent / "whole"
    process = start(long_recipe, run)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told
    return run


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_the_same_command_goes_on(
    long_recipe: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    process = start(long_recipe, run)
    wait_for_step(process, run, 7)
    process.send_signal(number)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, told
    assert f"stopped by {number.name}" in told
    taken = len(losses(run))
    assert taken < 150
    assert (run / f"checkpoints/step-{taken:06d}/MANIFEST.json").exists()
    again = start(long_recipe, run)
    _, told = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, told
    assert f"going on from step {taken}" in told
    assert digest(run) == digest(whole)
    assert losses(run) == losses(whole)


def test_a_signal_before_anything_is_loaded(long_recipe: Path, tmp_path: Path) -> None:
    """While torch is being imported, which takes longer than anything before the first step."""
    run = tmp_path / "run"
    process = start(long_recipe, run)
    deadline = time.monotonic() + PATIENCE
    while not (run / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, told
    assert "stopped by SIGTERM: nothing was in progress that needed saving" in told
    assert "Traceback" not in told
    assert not (run / "lock.json").exists()


@pytest.mark.parametrize("step", [1, 25, 61])
def test_after_sigkill_the_adapter_is_byte_identical(
    long_recipe: Path, whole: Path, tmp_path: Path, step: int
) -> None:
    run = tmp_path / "run"
    process = start(long_recipe, run)
    wait_for_step(process, run, step)
    process.kill()
    process.communicate(timeout=PATIENCE)
    again = start(long_recipe, run)
    _, told = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, told
    assert digest(run) == digest(whole)
    assert losses(run) == losses(whole)


def test_a_damaged_checkpoint_is_named_and_the_run_still_ends_the_same(
    long_recipe: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(long_recipe, run)
    wait_for_step(process, run, 45)
    process.kill()
    process.communicate(timeout=PATIENCE)
    newest = max((run / "checkpoints").glob("step-??????"))
    os.truncate(newest / "weights.safetensors", 100)
    again = start(long_recipe, run)
    _, told = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, told
    assert f"skipped a damaged checkpoint: {newest.name}: weights.safetensors has 100" in told
    assert digest(run) == digest(whole)


def test_a_folder_in_use_is_left_alone(long_recipe: Path, tmp_path: Path, cli: RunCli) -> None:
    run = tmp_path / "run"
    process = start(long_recipe, run)
    wait_for_step(process, run, 1)
    second = cli("finetune", long_recipe, "--out", run)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert second.returncode == 75
    assert f"(pid {process.pid} on {os.uname().nodename}, boot " in second.stderr
    third = cli("finetune", long_recipe, "--out", run, "--dry-run")
    assert third.returncode == 0, third.stderr


def test_a_file_where_the_folder_should_be(recipe: Path, tmp_path: Path, cli: RunCli) -> None:
    (tmp_path / "run").write_text("mine")
    done = cli("finetune", recipe, "--out", tmp_path / "run")
    assert done.returncode == 74
    assert "is a file" in done.stderr
    assert (tmp_path / "run").read_text() == "mine"
    under = cli("finetune", recipe, "--out", tmp_path / "run" / "deeper")
    assert under.returncode == 74
    assert "Traceback" not in under.stderr
