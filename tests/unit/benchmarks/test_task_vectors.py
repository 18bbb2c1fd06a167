"""The figures of task vectors on the pages are those of the result, which holds its bounds."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parents[3] / "benchmarks" / "task_vectors"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The script that writes the figures."""
    found = importlib.util.spec_from_file_location("task_vectors_table", HERE / "table.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def summary(table: ModuleType) -> dict[str, Any]:
    """What was measured."""
    found: dict[str, Any] = table.read_result()[1]
    return found


def test_the_pages_show_what_was_measured(table: ModuleType, summary: dict[str, Any]) -> None:
    name, _ = table.read_result()
    assert json.loads((HERE / "results" / name).read_text(encoding="utf-8"))["clean_tree"]
    lines = table.lines_of(summary)
    assert len(lines) >= 20
    for page in table.PAGES:
        text = page.read_text(encoding="utf-8")
        for line in (name, *lines):
            assert line in text


def test_negation_hurts_what_was_learned_and_little_else(summary: dict[str, Any]) -> None:
    assert len(summary["negation"]) == 3
    for each in summary["negation"].values():
        assert each["least_ratio"] >= 10
        assert each["most_random_share"] <= 0.1
        assert each["control_kept"] >= 0.94
    for ascent in summary["ascent"]:
        assert max(ascent["end_control_kept"]) < 0.95


def test_the_best_sum_takes_less_than_all_of_both(summary: dict[str, Any]) -> None:
    for name, each in summary["addition"].items():
        if name.endswith("100 steps"):
            assert each["interior"]
            assert each["at_1"] < each["loss"] < 1


def test_a_soup_is_better_than_the_mean_of_its_runs(summary: dict[str, Any]) -> None:
    for part in ("soup_of_rates", "soup_of_seeds"):
        assert summary[part]["uniform"] < summary[part]["mean"]
    analogy = summary["analogy"]
    assert analogy["analogy"] < min(analogy[n] for n in ("base", "plays", "capital stories"))
