"""Negative controls: whatever a resumed run fails to put back must show in its result."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from fault_runs import STEP, Forks, at, digest, outcome

pytestmark = pytest.mark.slow
BROKEN = {
    "seed of the step": ("peftkit.train.loop", "mix", "one_later"),
    "step of the schedule": ("peftkit.pipeline.steps", "learning_rate", "one_later"),
    "moments of the optimizer": ("peftkit.pipeline.steps", "restore", "without_moments"),
    "weights": ("peftkit.pipeline.steps", "restore", "without_weights"),
    "position in the data": ("peftkit.pipeline.steps", "stream_updates", "of_step_0"),
}


@pytest.fixture(scope="module")
def stopped(forks: Forks, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stopped") / "run"
    point = at(STEP, 7, do=["signal", signal.SIGTERM])
    assert forks.finish(recipe, run, points=[point]).code == 143
    return run


def test_put_back_whole_it_ends_the_same(
    forks: Forks, recipe: Path, whole: Path, stopped: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    done = forks.finish(recipe, tmp_path / "run")
    assert done.code == 0, done.told
    assert outcome(tmp_path / "run") == outcome(whole)


@pytest.mark.parametrize("what", BROKEN)
def test_without_it_the_result_is_another(
    forks: Forks,
    recipe: Path,
    whole: Path,
    stopped: Path,
    tmp_path: Path,
    what: str,
    record_property: Any,
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    done = forks.finish(recipe, tmp_path / "run", first=[["break", *BROKEN[what]]])
    assert done.code == 0, done.told
    other = digest(tmp_path / "run") != digest(whole)
    record_property("negative controls that show", {what: int(other)})
    assert other
