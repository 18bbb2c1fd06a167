"""Several runs on one page: told apart, compared where they differ, overlaid."""

from pathlib import Path

import pytest
import run_folders as folders

from peftkit.report import comparison
from peftkit.report.page import build_comparison
from peftkit.report.reading import read_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        folders.write_run(tmp_path / "a", name="small", adapter__rank=4),
        folders.write_run(tmp_path / "b", name="large", steps=400, seed=1),
    ]


def test_only_differing_keys_are_listed(runs: list[Path]) -> None:
    table = comparison.differences(comparison.named([read_run(run) for run in runs]))
    assert table.columns == ("Key", "small", "large")
    assert table.rows == (("adapter.rank", "4", "16"), ("train.steps", "300", "400"))


def test_a_key_that_one_run_lacks_is_a_difference(runs: list[Path]) -> None:
    recipe = folders.resolved(300, name="small", adapter__rank=4, adapter__dropout=0.1)
    folders.write(runs[0] / "recipe.resolved.json", recipe)
    table = comparison.differences(comparison.named([read_run(run) for run in runs]))
    assert ("adapter.dropout", "0.1", "–") in table.rows


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    made = [folders.write_run(tmp_path / where) for where in ("x/one", "y/one", "two", "intents")]
    labels = [item.label for item in comparison.named([read_run(run) for run in made])]
    assert labels == ["intents in one (1)", "intents in one (2)", "intents in two", "intents"]


def test_every_run_has_a_row_and_a_line(runs: list[Path]) -> None:
    named = comparison.named([read_run(run) for run in runs])
    table = comparison.figures(named)
    assert [row[:3] for row in table.rows] == [
        ("small", "Yes", "100 test rows"),
        ("large", "Yes", "100 test rows"),
    ]
    training, validation = comparison.curves(named)
    assert [line.name for line in training.lines] == ["small", "large"]
    assert len({line.tone for line in training.lines}) == 2
    assert len({line.mark for line in validation.lines}) == 2


def test_a_run_without_files_is_compared_all_the_same(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    page = build_comparison([*runs, tmp_path / "empty"])
    assert "2 of 3 runs clearly helped." in page
    assert "No verdict" in page


def test_twenty_long_runs_stay_under_two_megabytes(tmp_path: Path) -> None:
    made = [folders.write_run(tmp_path / f"run-{at}", steps=3000, seed=at) for at in range(20)]
    assert len(build_comparison(made).encode()) < 2_000_000
