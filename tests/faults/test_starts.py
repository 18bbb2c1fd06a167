"""However many start in one folder at the same moment, one runs."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from fault_runs import Forks, at, outcome, until

pytestmark = pytest.mark.slow
STARTS = 100


def test_one_of_a_hundred_runs(
    forks: Forks, recipe: Path, whole: Path, tmp_path: Path, record_property: Any
) -> None:
    run = tmp_path / "run"
    start, finish = tmp_path / "start", tmp_path / "finish"
    # Whoever gets the folder waits in it, so that no other comes only after the run has ended.
    inside = at("peftkit.pipeline.finetune:prepare", do=["await", str(finish)])
    order = {"first": [["await", str(start)]], "points": [inside]}
    started = [forks.start(recipe, run, **order) for _ in range(STARTS)]
    start.touch()
    logs = [log for _, log in started]
    until(lambda: sum("hint" in log.read_text() for log in logs) == STARTS - 1, "99 refusals")
    finish.touch()
    done = [forks.wait(one) for one in started]
    codes = sorted(one.code for one in done)
    record_property("simultaneous starts", {"ran": codes.count(0), "busy": codes.count(75)})
    assert codes == [0] + [75] * (STARTS - 1)
    winner = started[[one.code for one in done].index(0)][0]
    busy = [one.told for one in done if one.code == 75]
    assert all(f"is in use by a live run (pid {winner} on {os.uname().nodename}" in s for s in busy)
    assert outcome(run) == outcome(whole)


def test_the_lock_of_a_killed_run_holds_nobody_up(
    forks: Forks, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    point = at("peftkit.base.load:load_base", do=["signal", signal.SIGKILL])
    assert forks.finish(recipe, run, points=[point]).code == -signal.SIGKILL
    assert (run / ".lock").read_text()
    again = forks.finish(recipe, run)
    assert again.code == 0, again.told
    assert outcome(run) == outcome(whole)
