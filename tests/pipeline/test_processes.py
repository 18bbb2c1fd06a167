"""Several processes take a run's steps together, and it ends as with one."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import peftkit

sys.path.append(str(Path(__file__).parent))

from dividing import CASES, STEPS, take

pytestmark = pytest.mark.slow
PATIENCE = 240
Launched = subprocess.Popen[str]


def launch(*program: object) -> Launched:
    """Two processes of a program, over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, "--master-port", str(port), *map(str, program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
    )


def tell(process: Launched, code: int) -> tuple[str, str]:
    """What was printed and said by a launch that ends with `code`."""
    shown, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    return shown, said


def finetune(recipe: Path, run: Path, *options: object) -> Launched:
    return launch("-m", "peftkit", "finetune", recipe, "--out", run, *options)


def read_steps(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [step["loss"] for step in read_steps(run)]


def weights(run: Path) -> Path:
    return run / "adapter/adapter_model.safetensors"


def digest(run: Path) -> str:
    return hashlib.sha256(weights(run).read_bytes()).hexdigest()


def files(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def wait_for_step(process: Launched, run: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    path = run / "steps.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was never reached")


@pytest.fixture(scope="module")
def divided(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What two processes of the loop left behind, and what was said when one of them failed."""
    folder = tmp_path_factory.mktemp("divided")
    script = Path(__file__).with_name("dividing.py")
    _, said = tell(launch(script, tiny_llama, folder), 1)
    return folder, said


def of_each(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["packed", "plain", "fewer rows than processes"])
def test_two_processes_take_the_steps_of_one(
    divided: tuple[Path, str], tiny_llama: Path, name: str
) -> None:
    folder, _ = divided
    alone, expected = take(tiny_llama, CASES[name])
    facts = of_each(folder, name)
    for one in facts:
        assert len(one["steps"]) == STEPS
        for ours, theirs in zip(one["steps"], alone["steps"], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
            assert ours["tokens"] == theirs["tokens"]
            assert ours["trained_tokens"] == theirs["trained_tokens"]
    found = [load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1)]
    assert len(expected) >= 20
    for parameter, value in expected.items():
        assert torch.equal(found[0][parameter], found[1][parameter]), parameter
        assert torch.allclose(found[0][parameter], value, atol=2e-4), parameter


@pytest.mark.parametrize("name", ["packed", "fewer rows than processes"])
def test_each_row_is_seen_once_an_epoch_by_one_process(
    divided: tuple[Path, str], tiny_llama: Path, name: str
) -> None:
    alone, _ = take(tiny_llama, CASES[name])
    first, second = of_each(divided[0], name)
    for whole, ours, theirs in zip(alone["rows"], first["rows"], second["rows"], strict=True):
        assert sorted(ours + theirs) == sorted(whole)
    taken = [row for facts in (first, second) for update in facts["rows"] for row in update]
    assert len(taken) == STEPS * CASES[name].rows
    if name == "packed":
        epochs = [
            row for facts in (first, second) for update in facts["rows"][:5] for row in update
        ]
        assert sorted(epochs) == sorted(2 * [f"row:{number}" for number in range(20)])
        assert all(facts["rows"][0] for facts in (first, second))
    else:
        assert second["rows"] == STEPS * [[]]


def test_dropout_is_the_same_each_time(divided: tuple[Path, str]) -> None:
    folder, _ = divided
    once, again = of_each(folder, "dropout"), of_each(folder, "dropout again")
    plain = of_each(folder, "packed")
    for ours, theirs, without in zip(once, again, plain, strict=True):
        kept = [step["loss"] for step in ours["steps"]]
        assert kept == [step["loss"] for step in theirs["steps"]]
        assert kept != [step["loss"] for step in without["steps"]]


def test_a_loss_that_is_no_number_in_one_process_stops_both_before_the_update(
    divided: tuple[Path, str],
) -> None:
    folder, _ = divided
    for facts in of_each(folder, "diverged"):
        assert [step["step"] for step in facts["steps"]] == [1, 2]
    found = [load_file(folder / f"diverged-{rank}.safetensors") for rank in (0, 1)]
    for name, value in found[0].items():
        assert value.isfinite().all()
        assert torch.equal(value, found[1][name])


def test_a_process_that_fails_does_not_leave_the_other_waiting(divided: tuple[Path, str]) -> None:
    _, said = divided
    assert "ValueError: made to fail" in said
    assert "RunError: another process of this run has ended" in said


@pytest.fixture(scope="module")
def recipe(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters in the upper block, so that what the lower one computes is kept by the first."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "text.txt").write_text(
        "\n".join(
            f"Line {n} tells of the {n * 7 % 31} hats of number {n}{', red' * (n % 6)}."
            for n in range(300)
        )
    )
    path = folder / "recipe.yaml"
    path.write_text(
        f"""\
base: {{model: {tiny_llama}}}
adapter: {{rank: 4, dropout: 0, layers: [1]}}
data: {{train: {{source: text.txt, format: text}}, max_length: 64}}
train:
  steps: 150
  batch: {{rows: 8}}
  learning_rate: 2e-3
  save_every: 20
  keep: 2
  threads: 1
evaluate: {{every: 30, samples: 1, rows: 16}}
"""
    )
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    run = recipe.parent / "whole"
    shown, said = tell(finetune(recipe, run), 0)
    assert "2 processes divide the rows of each update" in said
    assert json.loads((run / "lock.json").read_text())["choices"]["frozen"] is True
    assert (shown + said).count("adapter  ") == 1  # one process speaks
    return run


def test_the_command_ends_in_the_run_folder_of_one_process(recipe: Path, whole: Path) -> None:
    alone = recipe.parent / "alone"
    peftkit.finetune(recipe, out=alone)
    assert files(whole) == files(alone)
    assert len(losses(whole)) == 150
    assert losses(whole) == pytest.approx(losses(alone), abs=1e-5)
    left, right = load_file(weights(whole)), load_file(weights(alone))
    assert sorted(left) == sorted(right)
    assert all(torch.allclose(left[name], right[name], atol=2e-4) for name in left)
    lock = json.loads((whole / "lock.json").read_text())
    assert lock["choices"]["processes"] == 2


def test_interrupted_and_launched_again_the_bytes_are_the_same(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = finetune(recipe, run)
    wait_for_step(process, run, 7)
    process.send_signal(signal.SIGTERM)
    _, said = tell(process, 1)  # the launcher's own code
    taken = len(losses(run))
    assert said.count(f"stopped by SIGTERM: step {taken} of 150 is saved") == 1
    assert taken < 150
    assert (run / f"checkpoints/step-{taken:06d}/MANIFEST.json").exists()
    _, said = tell(finetune(recipe, run), 0)
    assert f"going on from step {taken} of 150" in said
    assert losses(run) == losses(whole)
    assert digest(run) == digest(whole)


def test_a_signal_to_one_process_stops_all_after_the_same_step(
    recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = finetune(recipe, run)
    wait_for_step(process, run, 3)
    first = json.loads((run / ".lock").read_text())["pid"]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    others = [int(child) for child in children if int(child) != first]
    assert len(others) == 1
    os.kill(others[0], signal.SIGTERM)
    _, said = tell(process, 1)
    taken = len(losses(run))
    assert f"stopped by SIGTERM: step {taken} of 150 is saved" in said
    assert (run / f"checkpoints/step-{taken:06d}/MANIFEST.json").exists()


def test_an_error_that_all_would_find_is_said_once(recipe: Path, tmp_path: Path) -> None:
    _, said = tell(finetune(recipe, tmp_path / "run", "--set", "train.stesp=3"), 1)
    assert said.count("is not a valid recipe") == 1


def test_what_is_added_to_the_loss_is_added_once(recipe: Path, tmp_path: Path) -> None:
    """Penalties of weights by the first process alone, those of general text by each in part."""
    general = tmp_path / "general.txt"
    general.write_text("\n".join(f"Row {n} has {n % 9} of them, and no hats." for n in range(30)))
    source = f"source: {general}, format: text"
    entries = f"[{{ewc: {{strength: 9, {source}, rows: 4}}}}, {{kl: {{strength: 1, {source}}}}}, "
    added = f"train.regularize={entries}{{l2sp: 1}}, {{label_smoothing: 0.1}}]"
    shown, said = tell(
        finetune(recipe, tmp_path / "both", "--set", added, "--set", "train.steps=6"), 0
    )
    assert "2 processes divide" in said, shown
    key, _, value = added.partition("=")
    alone = peftkit.finetune(recipe, out=tmp_path / "alone", set={key: value, "train.steps": 6})
    for ours, theirs in zip(read_steps(tmp_path / "both"), read_steps(alone.path), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["penalty"] == pytest.approx(theirs["penalty"], rel=1e-2, abs=1e-6)
    assert set(theirs["penalty"]) == {"l2sp", "ewc", "kl", "label_smoothing"}
    assert theirs["penalty"]["kl"] > 0


def test_two_processes_take_the_stages_of_one(tmp_path: Path, tiny_llama: Path) -> None:
    rows = [{"prompt": f"Hats of {n}:", "completion": f" {n % 7}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""\
base: {{model: {tiny_llama}}}
adapter: {{rank: 4}}
data: {{train: rows.jsonl, validation: {{fraction: 0.2}}, duplicates: off, leakage: off}}
train: {{steps: 4, batch: {{rows: 8}}, learning_rate: 1e-2, threads: 1}}
evaluate: {{rows: 4, samples: 1}}
stages: [{{name: first}}, {{name: second, as: folded}}, {{name: third}}]
"""
    )
    alone = peftkit.finetune(recipe, out=tmp_path / "alone")
    tell(finetune(recipe, tmp_path / "both"), 0)
    both = json.loads((tmp_path / "both" / "metrics.json").read_text())
    for name, losses in alone.metrics["losses"].items():
        for each, loss in losses.items():
            assert both["losses"][name][each] == pytest.approx(loss, abs=1e-4)
    _, said = tell(finetune(recipe, tmp_path / "both"), 0)
    assert "is finished" in said
