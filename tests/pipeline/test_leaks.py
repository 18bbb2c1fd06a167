"""A run whose test rows leak in part says what comes out without them, and keeps its split."""

import json
from pathlib import Path
from typing import Any

import pytest

import peftkit
from peftkit.errors import InputError, RecipeError

pytestmark = pytest.mark.slow


def add_rows(path: Path, rows: list[str]) -> None:
    with path.open("a") as file:
        file.writelines(f"{row}\n" for row in rows)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_figures_are_given_with_and_without_the_rows_that_leaked(
    recipe: Path, tmp_path: Path
) -> None:
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    add_rows(tmp_path / "test.jsonl", rows[:6])
    odd = json.loads(rows[9]) | {"output": "purple"}
    add_rows(tmp_path / "train.jsonl", [rows[0], json.dumps(odd)])
    run = peftkit.finetune(recipe, out=tmp_path / "run")
    data = read(run.path / "data.json")
    leaked = data["leakage"]["sets"]["test"]["exact"]
    assert 0 < leaked <= 6  # some may have been held out for validation
    clean, metrics = run.metrics["test_without_leaks"], run.metrics
    assert (metrics["test"]["rows"], clean["rows"]) == (30, 30 - leaked)
    for name in ("loss", "exact_match"):
        assert clean["difference"][name]["adapted"] == clean[name]
    assert clean["loss"] != metrics["test"]["loss"]
    assert "validation_without_leaks" not in metrics
    (finding,) = [finding for finding in run.findings if finding["id"] == "leakage"]
    assert f"on the {30 - leaked} test rows that did not leak" in finding["sentence"]
    for page in ("report.md", "report.html"):
        assert "without the rows that leaked" in (run.path / page).read_text()
    assert data["duplicates"]["exact"] == 1
    assert data["duplicates"]["most"][0]["where"] == "train.jsonl:1"
    assert data["label_conflicts"]["texts"] == 1
    (pair,) = [pair for pair in data["label_conflicts"]["pairs"] if pair["set"] == "train"]
    assert (pair["left"], pair["right"]) == ("train.jsonl:10", "train.jsonl:66")
    assert {"duplicates", "label-conflicts"} <= {finding["id"] for finding in run.findings}


def test_the_split_is_kept_by_digest_and_another_one_is_refused(
    recipe: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps(row | {"who": at // 4}) + "\n" for at, row in enumerate(rows))
    )
    how = {"data.validation.fraction": 0.3, "data.validation.by": "group:who"}
    run = peftkit.finetune(recipe, out=tmp_path / "run", set=how)
    split = read(run.path / "split.json")
    assert (split["validation"]["by"], split["validation"]["fraction"]) == ("group:who", 0.3)
    held = split["validation"]["rows"]
    assert len(held) == run.metrics["validation"]["rows"]
    assert len(held) % 4 == 0
    with pytest.raises(RecipeError) as refusal:
        peftkit.finetune(recipe, out=tmp_path / "run", set=how | {"data.validation.fraction": 0.5})
    assert refusal.value.problems == ("data.validation.fraction: 0.3 -> 0.5",)

    add_rows(tmp_path / "train.jsonl", [json.dumps({**rows[0], "instruction": "new", "who": 99})])
    with pytest.raises(RecipeError, match="cannot go on"):
        peftkit.finetune(recipe, out=tmp_path / "run", set=how)
    again = peftkit.finetune(recipe, out=tmp_path / "other", set=how)
    assert set(held) <= set(read(again.path / "split.json")["validation"]["rows"])


def test_a_column_that_is_not_there_stops_before_anything_is_written(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no column `author`") as refusal:
        peftkit.finetune(recipe, out=tmp_path / "run", set={"data.validation.by": "group:author"})
    assert "train.jsonl:1" in str(refusal.value)
    assert "`instruction`, `output`" in str(refusal.value)
    assert not (tmp_path / "run" / "data.json").exists()
