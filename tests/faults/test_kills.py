"""Killed at any moment, a run ends as if it had not been, when the same command is given again."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fault_runs import STEP, Forks, at, digest, killed_in_step, leftovers, outcome, taken

pytestmark = pytest.mark.slow
PLACES = [
    ("peftkit.base.load:load_base", 1),
    ("peftkit.pipeline.identity:write_lock", 1),
    (STEP, 2),
    ("peftkit.evaluate.losses:measure_losses", 2),
    ("peftkit.train.checkpoint:rotate", 2),
    ("peftkit.adapters.store:_save_config", 1),
    ("peftkit.report.page:build_page", 1),
]
KILLS = 50


@pytest.mark.parametrize(("place", "nth"), PLACES, ids=[place for place, _ in PLACES])
def test_killed_at_a_call(
    forks: Forks, recipe: Path, whole: Path, tmp_path: Path, place: str, nth: int
) -> None:
    run = tmp_path / "run"
    point = at(place, nth, do=["signal", signal.SIGKILL])
    assert forks.finish(recipe, run, points=[point]).code == -signal.SIGKILL
    again = forks.finish(recipe, run)
    assert again.code == 0, again.told
    assert outcome(run) == outcome(whole)
    assert leftovers(run) == []


def test_what_was_chosen_stays_chosen(
    forks: Forks, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """A layout that `lock.json` names is used on resume, whatever would be chosen today."""
    lock = json.loads((whole / "lock.json").read_text())
    lock["choices"]["flat"] = not lock["choices"]["flat"]
    runs = [tmp_path / name for name in ("left alone", "killed")]
    for run in runs:
        run.mkdir()
        (run / "lock.json").write_text(json.dumps(lock))
    assert forks.finish(recipe, runs[0]).code == 0
    assert forks.finish(recipe, runs[1], points=[killed_in_step(8)]).code == -signal.SIGKILL
    again = forks.finish(recipe, runs[1])
    assert again.code == 0, again.told
    assert outcome(runs[1]) == outcome(runs[0])
    assert digest(runs[0]) != digest(whole)


@pytest.mark.faults
def test_killed_at_random_times(
    forks: Forks, recipe: Path, whole: Path, tmp_path: Path, record_property: Any
) -> None:
    """Uniform over the time that a whole run takes: loading, saving, evaluating and all."""
    began = time.monotonic()
    assert forks.finish(recipe, tmp_path / "measured").code == 0
    length = time.monotonic() - began
    draw = random.Random(7)
    killed = identical = 0
    steps = set()
    while killed < KILLS:
        run = tmp_path / "run"
        pid, log = forks.start(recipe, run)
        time.sleep(draw.uniform(0, length))
        os.kill(pid, signal.SIGKILL)
        if forks.wait((pid, log)).code == 0:  # it had ended before the kill came
            shutil.rmtree(run)
            continue
        killed += 1
        steps.add(len(taken(run)))
        again = forks.finish(recipe, run)
        assert again.code == 0, again.told
        identical += outcome(run) == outcome(whole)
        shutil.rmtree(run)
    counts = {"killed": killed, "identical": identical, "after different steps": len(steps)}
    record_property("SIGKILL at random times", counts)
    assert identical == KILLS
    assert len(steps) >= 5


@pytest.mark.faults
def test_killed_five_times_in_one_run(
    forks: Forks, recipe: Path, whole: Path, tmp_path: Path, record_property: Any
) -> None:
    identical = killed = 0
    for number in range(5):
        draw = random.Random(number)
        run = tmp_path / f"run{number}"
        for _ in range(5):
            point = at("*", draw.randint(1, 400_000), do=["signal", signal.SIGKILL])
            code = forks.finish(recipe, run, points=[point]).code
            assert code in (0, -signal.SIGKILL)
            killed += code != 0
        again = forks.finish(recipe, run)
        assert again.code == 0, again.told
        identical += outcome(run) == outcome(whole)
    counts = {"runs": 5, "killed": killed, "identical": identical}
    record_property("up to five SIGKILLs in one run", counts)
    assert identical == 5
    assert killed >= 15


@pytest.mark.faults
def test_a_fork_ends_as_a_process_of_its_own_does(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "peftkit", "finetune", str(recipe), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path) == outcome(whole)
