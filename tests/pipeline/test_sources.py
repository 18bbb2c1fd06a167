"""A run keeps to the rows it began with: those of a commit, and those given from Python."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import peftkit
from peftkit.errors import InputError, RecipeError

pytestmark = pytest.mark.slow


def rows_of(recipe: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in recipe.with_name(name).read_text().splitlines()]


def put_on_hub(commit: str, text: str) -> None:
    folder = Path(constants.HF_HUB_CACHE) / "datasets--org--pinned"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit / "train.jsonl").write_text(text)


def test_a_run_that_goes_on_reads_the_commit_that_it_began_with(
    recipe: Path, tmp_path: Path
) -> None:
    text = recipe.with_name("train.jsonl").read_text()
    put_on_hub("a" * 40, text)
    source = {"data.train": "hub:org/pinned@main:train"}
    run = peftkit.finetune(recipe, set=source, out=tmp_path / "run")
    for name in ("lock.json", "data.json"):
        told = json.loads((run.path / name).read_text())
        assert told["commits"] == {"hub:org/pinned@main:train": "a" * 40}
    put_on_hub("b" * 40, text.replace("number 5 ", "number five "))
    longer = {**source, "train.steps": 14}
    peftkit.finetune(recipe, set=longer, out=tmp_path / "run", allow_change=["train.steps"])
    told = json.loads((run.path / "lock.json").read_text())
    assert told["commits"] == {"hub:org/pinned@main:train": "a" * 40}


def test_rows_from_python_are_those_of_a_file(recipe: Path, tmp_path: Path) -> None:
    train, test = rows_of(recipe, "train.jsonl"), rows_of(recipe, "test.jsonl")
    wanted = peftkit.finetune(recipe, out=tmp_path / "files")
    run = peftkit.finetune(
        recipe, out=tmp_path / "given", rows={"train": iter(train), "test": test}
    )
    assert run.metrics["validation"] == wanted.metrics["validation"]
    assert run.samples[0]["where"].partition("-")[0] == "test"
    assert {path.name.partition("-")[0] for path in (run.path / "rows").iterdir()} == {
        *("train", "test"),
    }
    again = peftkit.finetune(recipe, out=run.path, rows={"train": train, "test": test})
    assert again.metrics == run.metrics
    with pytest.raises(RecipeError, match="holds a run of another recipe") as refusal:
        peftkit.finetune(recipe, out=run.path, rows={"train": train[1:], "test": test})
    assert "data.train" in refusal.value.problems[0]


def test_a_bad_row_from_python_has_a_line(recipe: Path, tmp_path: Path) -> None:
    train = [*rows_of(recipe, "train.jsonl"), {"instruction": "a"}]
    with pytest.raises(InputError, match="1 bad row") as refusal:
        peftkit.finetune(recipe, out=tmp_path / "run", rows={"train": train})
    (problem,) = refusal.value.problems
    name, line = problem.split(":")[:2]
    assert (name[:6], name[-6:], line) == ("train-", ".jsonl", "65")


def test_fresh_data_is_an_option_of_each_command_that_reads_rows(recipe: Path, cli: Any) -> None:
    for words in (("preview", recipe), ("plan", recipe), ("finetune", recipe, "--dry-run")):
        done = cli(*words, "--fresh-data")
        assert done.returncode == 0, done.stderr
