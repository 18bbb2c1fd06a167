"""The verdict, the judgments and the comparisons are what the figures say."""

import json
from pathlib import Path
from typing import Any

import pytest
import run_folders as folders

from peftkit.report import story
from peftkit.report.charts import draw
from peftkit.report.facts import Change, Run
from peftkit.report.reading import read_run


def read(tmp_path: Path, metrics: dict[str, Any] | None = None) -> Run:
    run = folders.write_run(tmp_path / "intents")
    if metrics is not None:
        folders.write(run / "metrics.json", metrics)
    return read_run(run)


@pytest.mark.parametrize(
    ("helped", "sentence", "title", "lead"),
    [
        ("yes", "the adapter helped: loss fell", "Yes, the adapter helped", "Loss fell."),
        ("no", "the adapter made it worse: x", "No, the adapter made it worse", "X."),
        ("unclear", "no clear effect: loss stayed", "No clear effect", "Loss stayed."),
        ("yes", "loss fell", "Yes, it helped", "Loss fell."),
        ("perhaps", "who knows", "It is not clear whether it helped", "Who knows."),
        ("no", f"{'long ' * 20}: tail", "No, it did not help", f"{'Long ' + 'long ' * 19}: tail."),
    ],
)
def test_headlines(tmp_path: Path, helped: str, sentence: str, title: str, lead: str) -> None:
    said = story.headline(read(tmp_path, {"verdict": {"helped": helped, "sentence": sentence}}))
    assert (said.title, said.lead, said.sentence) == (title, lead, sentence)


def test_a_run_that_stopped_early_says_where(tmp_path: Path) -> None:
    run = folders.write_run(tmp_path / "half")
    (run / "metrics.json").unlink()
    folders.write_lines(run / "steps.jsonl", folders.step_lines(300)[:120])
    said = story.headline(read_run(run))
    assert said.title == "No verdict yet"
    assert said.lead.startswith("Training stopped after 120 of 300 steps")


@pytest.mark.parametrize(
    ("metric", "interval", "said"),
    [
        ("exact_match", (0.1, 0.3), "better"),
        ("exact_match", (-0.3, -0.1), "worse"),
        ("loss", (-0.3, -0.1), "better"),
        ("loss", (0.1, 0.3), "worse"),
        ("loss", (-0.1, 0.1), "could be chance"),
        ("loss", (0.0, 0.1), "could be chance"),
        ("never_heard_of", (0.1, 0.3), "changed"),
        ("loss", None, "no interval"),
    ],
)
def test_judgments(metric: str, interval: tuple[float, float] | None, said: str) -> None:
    middle = sum(interval) / 2 if interval else 0.5
    assert story.judgment(Change(metric, 1.0, 1.0 + middle, middle, interval)) == said


def test_the_metric_of_the_task_comes_first(tmp_path: Path) -> None:
    figures = story.figures(read(tmp_path))
    assert [(item.label, item.before, item.after) for item in figures] == [
        ("Exact match", "0.0 %", "93.0 %"),
        ("Loss", "4.151", "0.342"),
    ]


def test_without_intervals_the_change_is_still_told(tmp_path: Path) -> None:
    metrics = folders.metrics()
    del metrics["difference"]
    figures = story.figures(read(tmp_path, metrics))
    assert ("Loss", "\u22123.809", "no interval") in [
        (item.label, item.change, item.judgment) for item in figures
    ]


def test_every_baseline_stands_beside_the_adapter(tmp_path: Path) -> None:
    right, loss = story.comparisons(read(tmp_path))
    assert [bar.name for bar in right.bars] == [
        "Adapter",
        "Base, untouched",
        "Linear head only",
        "From scratch",
    ]
    assert [bar.value for bar in loss.bars] == ["0.342", "4.151", "1.251", "1.961"]
    assert right.note == "Higher is better."


def test_intervals_of_their_own_are_drawn_for_each(tmp_path: Path) -> None:
    metrics = folders.metrics()
    metrics["test"]["intervals"] = {"loss": [0.3, 0.4]}
    metrics["baselines"]["base"]["test"]["intervals"] = {"loss": [4.0, 4.3]}
    loss = story.comparisons(read(tmp_path, metrics))[1]
    assert [bar.reach for bar in loss.bars] == ["0.300 to 0.400", "4.000 to 4.300", "", ""]
    assert loss.note.endswith("Whiskers: 95 % intervals.")


def test_steps_without_a_loss_are_told(tmp_path: Path) -> None:
    run = folders.write_run(tmp_path / "intents")
    lines = folders.step_lines(300)
    for at in (44, 45):
        lines[at]["loss"] = None
    folders.write_lines(run / "steps.jsonl", lines)
    assert "2 steps had no finite loss (the first at step 45)." in story.curve_summary(
        read_run(run)
    )


@pytest.mark.parametrize(
    ("steps", "said"), [(40, "Training loss fell"), (300, "Smoothed training")]
)
def test_a_mean_is_called_one(tmp_path: Path, steps: int, said: str) -> None:
    facts = read_run(folders.write_run(tmp_path / "intents", steps=steps))
    assert story.curve_summary(facts).startswith(said)
    looks = [line.look for line in story.loss_lines(facts)]
    assert looks == (["bold", "points"] if steps == 40 else ["thin", "bold", "points"])


def test_the_best_validation_loss_is_told(tmp_path: Path) -> None:
    run = folders.write_run(tmp_path / "intents")
    losses = [{"step": 0, "loss": 4.0}, {"step": 100, "loss": 1.0}, {"step": 200, "loss": 1.5}]
    folders.write_lines(run / "evaluations.jsonl", losses)
    said = story.curve_summary(read_run(run))
    assert "Validation loss was lowest at step 100 (1.000) and ended at 1.500." in said


def test_a_range_test_is_drawn_over_its_rates(tmp_path: Path) -> None:
    rates = [10.0 ** (at / 4 - 7) for at in range(20)]
    trials = [
        {"learning_rate": rate, "loss": 3.0 - at / 20, "smoothed": 3.0 - at / 40}
        for at, rate in enumerate(rates)
    ]
    (tmp_path / "finder.json").write_text(json.dumps({"suggestion": rates[13], "trials": trials}))
    drawn = story.curves(read_run(tmp_path))
    assert [chart.key for chart in drawn] == [
        "loss",
        "learning-rate",
        "gradient-norm",
        "range-test",
    ]
    chart = drawn[-1]
    assert chart.lines[-1].steps == (14,)
    assert 14 in chart.ticks
    assert chart.named[13] == "1.8e\u22124"
    svg = draw(chart)
    assert svg is not None
    assert "1.8e\u22124" in svg.scales[0][1]
    assert svg.cursor["named"]


def test_a_damaged_range_test_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "finder.json").write_text('{"suggestion": "x", "trials": [{"learning_rate": -1}]}')
    assert read_run(tmp_path).finder is None


def test_what_was_added_to_the_loss_is_drawn_term_by_term(tmp_path: Path) -> None:
    run = folders.write_run(tmp_path / "added")
    assert [chart.key for chart in story.curves(read_run(run))][-1] == "gradient-norm"
    lines = folders.step_lines(4)
    for number, line in enumerate(lines):
        line["penalty"] = {"l2sp": 0.1 * number, "kl": float("nan") if number == 2 else 0.5}
    folders.write_lines(run / "steps.jsonl", lines)
    chart = story.curves(read_run(run))[-1]
    assert chart.title == "Added to the loss by step"
    assert [line.name for line in chart.lines] == ["l2sp", "kl"]
    assert chart.lines[0].values == (0.0, 0.1, 0.2, pytest.approx(0.3))
    assert chart.lines[1].values == (0.5, 0.5, None, 0.5)
    assert len({line.tone for line in chart.lines}) == 2
