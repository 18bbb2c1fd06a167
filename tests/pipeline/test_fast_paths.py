"""Fast paths in whole runs: each is named, can be switched off, and changes nothing."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import peftkit
from peftkit.disk.cache import cache_root
from peftkit.fast.paths import PATHS

pytestmark = pytest.mark.slow
RunCli = Callable[..., subprocess.CompletedProcess[str]]
UPPER = {"adapter.layers": "upper-half", "adapter.dropout": 0.0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "steps.jsonl").read_text().splitlines()]


def chosen(run: Path) -> dict[str, Any]:
    choices: dict[str, Any] = json.loads((run / "lock.json").read_text())["choices"]
    return choices


def train(recipe: Path, run: Path, **settings: Any) -> list[float]:
    values = UPPER | {"train.threads": 1} | {k.replace("__", "."): v for k, v in settings.items()}
    peftkit.finetune(recipe, out=run, set=values)
    return losses(run)


def test_off_and_on_are_the_same_training(recipe: Path, tmp_path: Path) -> None:
    """All off, all on, and each alone off."""
    plain = train(recipe, tmp_path / "plain", train__fast="off")
    facts = chosen(tmp_path / "plain")
    assert not any(facts[name] for name in PATHS)
    assert all(facts["why"][name] == f"`train.fast.{name}: off`" for name in PATHS)
    here = {"head", "lora", "frozen", "norm", "optimizer"}  # too narrow and short for the others
    for off in ("", *sorted(here)):
        found = train(recipe, tmp_path / f"run {off}", train__fast={off: "off"} if off else "auto")
        facts = chosen(tmp_path / f"run {off}")
        assert {name for name in PATHS if facts[name]} == here - {off}
        assert found == pytest.approx(plain, rel=1e-4), off
        assert found[-1] < found[0]


def test_the_first_lines_name_each_path_and_why(cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    done = cli("finetune", recipe, "--out", tmp_path / "run", "--set", "train.fast={norm: off}")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    (on,) = [line for line in lines if line.startswith("fast paths that are on: ")]
    named = set(on.partition(": ")[2].split(", "))
    off = {line.partition(" is off: ")[0] for line in lines if " is off: " in line}
    assert named | (off & PATHS.keys()) == PATHS.keys()
    assert not named & off
    assert "norm is off: `train.fast.norm: off`" in lines
    assert "flat is off: a width of 32 is below 256, where it does not pay" in lines
    assert any(line.startswith("the base is held in float32: ") for line in lines)


def test_states_that_are_lost_on_the_way_come_back(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle, with the cache swept away: the same bytes all the same."""
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(recipe, whole)
    assert chosen(whole)["frozen"]
    shutil.rmtree(cache_root())

    def stop(*_given: Any, **_named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("peftkit.pipeline.steps.choose_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, parted)
    assert 0 < len(losses(parted)) < 12
    shutil.rmtree(cache_root())
    train(recipe, parted)
    name = "adapter/adapter_model.safetensors"
    assert (parted / name).read_bytes() == (whole / name).read_bytes()
    assert losses(parted) == losses(whole)


def test_blocks_that_run_again_change_nothing(recipe: Path, tmp_path: Path) -> None:
    kept = train(recipe, tmp_path / "kept", train__recompute="off")
    again = train(recipe, tmp_path / "again", train__recompute="all")
    assert chosen(tmp_path / "kept")["recomputed"] == 0
    assert chosen(tmp_path / "again")["recomputed"] == 1  # the other one is below the adapter
    assert again == pytest.approx(kept, rel=1e-5)


def test_doctor_names_each_path(cli: RunCli) -> None:
    done = cli("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = {ability["name"]: ability for ability in json.loads(done.stdout)}
    for name in PATHS:
        assert found[f"fast path `{name}`"]["state"] in ("on", "off")
        assert found[f"fast path `{name}`"]["why"]
    assert found["bfloat16"]["why"]
    assert found["several processes"]["state"] == "on"
