"""Forgetting, spikes, drift and the end of a run are drawn and told; nothing is where none were."""

from pathlib import Path
from typing import Any

import pytest
import run_folders as folders

from peftkit.report import story
from peftkit.report.drift import SHOWN, drift_bars
from peftkit.report.facts import Run
from peftkit.report.page import build_page
from peftkit.report.reading import read_run
from peftkit.report.text import build_text

STOP = {"reason": "patience", "sentence": "3 evaluations in a row did not come below 0.3"}


def write(folder: Path, **more: Any) -> Path:
    run = folders.write_run(folder / "intents")
    folders.write(run / "metrics.json", folders.metrics() | more)
    lines = folders.evaluation_lines(300)
    for at, line in enumerate(lines):
        line["remember"] = {"general.txt": 1.3 + 0.1 * at, "code.txt": 2.1}
    folders.write_lines(run / "evaluations.jsonl", lines)
    return run


def read(folder: Path, **more: Any) -> Run:
    return read_run(write(folder, **more))


def spike(step: int, kind: str) -> dict[str, Any]:
    return {"step": step, "kind": kind, "figure": 9.5, "usual": 1.0, "limit": 3.0}


def test_what_is_remembered_is_drawn_by_step_the_worst_first(tmp_path: Path) -> None:
    (loss, *_) = story.curves(read(tmp_path))
    drawn = [line for line in loss.lines if line.name.startswith("To be remembered")]
    assert [line.name.split(": ")[1] for line in drawn] == ["general.txt", "code.txt"]
    assert drawn[0].values[-1] == pytest.approx(1.9)
    assert len({(line.mark, line.tone) for line in loss.lines if line.look == "points"}) == 3


def test_spikes_are_marked_where_they_were(tmp_path: Path) -> None:
    run = read(tmp_path, spikes=[spike(40, "loss"), spike(90, "gradient")])
    marked = {
        chart.key: [line.steps[1:] for line in chart.lines if line.name == "Spike"]
        for chart in story.curves(run)
    }
    assert marked == {"loss": [(40,)], "learning-rate": [], "gradient-norm": [(90,)]}
    assert "There were 2 spikes (step 40, 90)." in story.curve_summary(run)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"weights": "best", "steps": [200]}, "The weights of step 200 were kept, the best"),
        ({"weights": "mean", "steps": [100, 200]}, "mean of the weights after steps 100, 200"),
        ({"weights": "exponential mean", "steps": [300]}, "An exponential mean of the weights"),
        ({"weights": "last", "steps": [300]}, ""),
    ],
)
def test_the_end_is_told_in_words(tmp_path: Path, kept: dict[str, Any], said: str) -> None:
    steps = {"planned": 300, "taken": 240, "stopped": STOP, "kept": kept}
    summary = story.curve_summary(read(tmp_path, steps=steps))
    assert "The run was stopped early: 3 evaluations in a row did not come below 0.3." in summary
    assert said in summary


def test_drift_is_a_bar_a_block(tmp_path: Path) -> None:
    layers = {f"layers.{number}": 0.01 * (number + 1) for number in range(60)}
    run = write(tmp_path, drift={"layers": layers, "divergence": {}})
    bars = drift_bars(read_run(run))
    assert bars is not None
    assert len(bars.bars) == SHOWN
    assert (bars.bars[0].name, bars.bars[-1].name) == ("layers.0", "layers.59")
    assert (bars.bars[0].value, bars.bars[-1].value) == ("1 %", "60 %")
    assert "24 of 60 blocks" in bars.note
    assert "How far each block moved" in build_page(run)
    assert "| layers.59 | 60 % |" in build_text(run)


@pytest.mark.parametrize(
    "odd",
    [
        {"spikes": "many", "drift": 3, "steps": []},
        {"spikes": [{"step": "x"}, 7], "drift": {"layers": [1]}, "steps": {"kept": 1}},
        {"steps": {"stopped": "no", "kept": {"weights": None, "steps": ["a"]}}},
    ],
)
def test_odd_figures_do_not_keep_the_page_from_being_made(
    tmp_path: Path, odd: dict[str, Any]
) -> None:
    run = write(tmp_path, **odd)
    assert drift_bars(read_run(run)) is None
    assert "How far each block moved" not in build_page(run)
    assert "stopped early" not in story.curve_summary(read_run(run))
