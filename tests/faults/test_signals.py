"""A signal at any phase stops a run soon, saves what there is, and costs nothing but time."""

import os
import pty
import select
import signal
from pathlib import Path
from typing import Any

import pytest
from fault_runs import STEP, Forks, at, leftovers, outcome, saved, taken, until

pytestmark = pytest.mark.slow
MEASURE = "peftkit.evaluate.losses:measure_losses"
PHASES = {
    "reading the data": ("peftkit.data.prepare:prepare_data", 1, None),
    "loading the base": ("peftkit.base.load:load_base", 1, None),
    "the first evaluation": (MEASURE, 1, None),
    "a step": (STEP, 5, None),
    "an evaluation in between": (MEASURE, 1, (STEP, 4)),
    "a save": ("peftkit.train.optimizer:read_moments", 2, None),
    "old ones being removed": ("peftkit.train.checkpoint:rotate", 3, None),
    "the last step": (STEP, 12, None),
    "the save of the adapter": ("peftkit.adapters.store:_save_config", 1, None),
    "the last evaluation": (MEASURE, 1, ("peftkit.adapters.store:save_adapter", 1)),
    "the report": ("peftkit.report.page:build_page", 1, None),
}
SAVED = {
    "a step": 5,
    "an evaluation in between": 4,
    "a save": 6,
    "old ones being removed": 9,
    "the last step": 12,
    "the save of the adapter": 12,
    "the last evaluation": 12,
    "the report": 12,
}
"""The step that is saved when the run has stopped: the one in hand."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SHORT = {
    ("a step", signal.SIGINT),
    ("an evaluation in between", signal.SIGTERM),
    ("a save", signal.SIGHUP),
    ("the save of the adapter", signal.SIGTERM),
    ("the report", signal.SIGINT),
    ("loading the base", signal.SIGTERM),
}
CASES = [
    pytest.param(
        phase,
        number,
        id=f"{number.name} in {phase}",
        marks=() if (phase, number) in SHORT else pytest.mark.faults,
    )
    for phase in PHASES
    for number in SIGNALS
]


def heard(phase: str, number: int) -> Any:
    place, nth, after = PHASES[phase]
    return at(place, nth, after=after, do=["signal", number])


@pytest.mark.parametrize(("phase", "number"), CASES)
def test_a_signal_saves_and_stops(
    forks: Forks,
    recipe: Path,
    whole: Path,
    tmp_path: Path,
    phase: str,
    number: signal.Signals,
    record_property: Any,
) -> None:
    run = tmp_path / "run"
    done = forks.finish(recipe, run, points=[heard(phase, number)])
    assert done.code == 128 + number, done.told
    assert f"stopped by {number.name}: " in done.told
    assert leftovers(run) == []
    checkpoints = sorted(run.glob("checkpoints/*"))
    assert int(checkpoints[-1].name[5:] if checkpoints else 0) == SAVED.get(phase, 0)
    again = forks.finish(recipe, run)
    assert again.code == 0, again.told
    same = outcome(run) == outcome(whole)
    record_property("signals at phases", {"identical": int(same)})
    assert same


def test_a_second_signal_quits_at_once(
    forks: Forks, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """In the middle of a save, which leaves the checkpoint before it as it was."""
    run = tmp_path / "run"
    copy = ["copy", str(run), str(tmp_path / "before")]
    points = [
        at("peftkit.train.checkpoint:save_checkpoint", 2, do=copy),
        heard("a save", signal.SIGTERM),
        at("peftkit.train.checkpoint:_describe", 2, do=["signal", signal.SIGINT]),
    ]
    done = forks.finish(recipe, run, points=points)
    assert done.code == 130, done.told
    assert "stopped by" not in done.told
    assert saved(run) == saved(tmp_path / "before")
    assert len(leftovers(run)) == 1
    again = forks.finish(recipe, run)
    assert again.code == 0, again.told
    assert leftovers(run) == []
    assert outcome(run) == outcome(whole)


def test_a_terminal_that_is_closed(forks: Forks, recipe: Path, whole: Path, tmp_path: Path) -> None:
    """It sends SIGHUP, and from then on nothing can be written to it."""
    run = tmp_path / "run"
    gate = tmp_path / "closed"
    wait = at(STEP, 5, do=["await", str(gate)])
    ours, theirs = pty.openpty()
    started = forks.start(recipe, run, terminal=os.ttyname(theirs), points=[wait])
    os.set_blocking(ours, False)
    until(lambda: drain(ours) or len(taken(run)) == 4, "the fourth step")
    os.close(ours)
    os.close(theirs)
    gate.touch()
    assert forks.wait(started).code == 129
    assert leftovers(run) == []
    assert list((run / "checkpoints").iterdir())
    again = forks.finish(recipe, run)
    assert again.code == 0, again.told
    assert outcome(run) == outcome(whole)


def drain(handle: int) -> None:
    """Read what a terminal shows, so that the one who writes to it need not wait."""
    while select.select([handle], [], [], 0)[0]:
        os.read(handle, 65536)
