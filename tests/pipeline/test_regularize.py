"""Runs with something added to their loss: nothing at strength 0, the same after a stop."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import peftkit
from peftkit.errors import InputError, RecipeError
from peftkit.train.checkpoint import newest_checkpoint

pytestmark = pytest.mark.slow

OFF = (
    "[{l2sp: 0}, {ewc: {strength: 0, source: no-such-file.txt}}, {kl: {strength: 0, source: x}}, "
    "{r_drop: 0}, {neftune: 0}, {label_smoothing: 0}, {decay_to_init: 0}]"
)


@pytest.fixture
def everything(tmp_path: Path) -> str:
    rows = "".join(f"The {n} hats of number {n} are made of felt, not of tin.\n" for n in range(40))
    path = tmp_path / "other.txt"
    path.write_text(rows)
    source = f"source: {path}, format: text"
    return (
        f"[{{l2sp: 0.1}}, {{ewc: {{strength: 100, {source}, rows: 4}}}}, "
        f"{{kl: {{strength: 0.5, {source}, rows: 2}}}}, {{r_drop: 1}}, {{neftune: 5}}, "
        "{label_smoothing: 0.1}, {decay_to_init: 0.1}]"
    )


def digest(run: Path) -> str:
    return hashlib.sha256((run / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "seconds"} for line in lines]


def test_strength_0_is_the_plain_run_to_the_last_bit(recipe: Path, tmp_path: Path) -> None:
    plain = peftkit.finetune(recipe, out=tmp_path / "plain")
    off = peftkit.finetune(recipe, out=tmp_path / "off", set={"train.regularize": OFF})
    assert digest(off.path) == digest(plain.path)
    assert steps(off.path) == steps(plain.path)
    assert not any("penalty" in line for line in steps(off.path))


def test_a_resumed_run_ends_as_one_that_was_not_stopped(
    recipe: Path, everything: str, tmp_path: Path
) -> None:
    """Also where a start was looked for in documents, which a resumed run has to find again."""
    wanted = {"train.regularize": everything, "adapter.variant": "eva"}
    whole = peftkit.finetune(recipe, out=tmp_path / "whole", set=wanted)
    assert sorted(steps(whole.path)[0]["penalty"]) == sorted(
        ["l2sp", "ewc", "kl", "r_drop", "label_smoothing", "decay_to_init"]
    )
    assert all(steps(whole.path)[-1]["penalty"].values())
    half = tmp_path / "half"
    peftkit.finetune(recipe, out=half, set=wanted)
    for folder in (half / "checkpoints").glob("step-000012"):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    (half / "metrics.json").unlink()
    checkpoint = newest_checkpoint(half / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 8
    (half / "adapter" / "adapter_model.safetensors").unlink()
    peftkit.finetune(recipe, out=half, set=wanted)
    assert digest(half) == digest(whole.path)
    assert steps(half) == steps(whole.path)
    report = (whole.path / "report.html").read_text()
    assert "Added to the loss by step" in report


def test_the_first_lines_say_which_paths_are_off(
    recipe: Path, everything: str, tmp_path: Path
) -> None:
    run = peftkit.finetune(recipe, out=tmp_path / "run", set={"train.regularize": everything})
    choices = json.loads((run.path / "lock.json").read_text())["choices"]
    assert not choices["head"]
    assert not choices["frozen"]
    assert choices["why"]["head"] == "`r_drop` compares every logit of two passes"
    assert choices["why"]["frozen"] == "`neftune` adds noise below the first adapter"
    data = json.loads((run.path / "data.json").read_text())
    assert data["general"]["ewc"]["rows"] > 4


def test_general_text_that_changed_is_another_run(
    recipe: Path, everything: str, tmp_path: Path
) -> None:
    wanted = {"train.regularize": everything, "adapter.method": "full", "train.steps": 4}
    peftkit.finetune(recipe, out=tmp_path / "run", set=wanted)
    (tmp_path / "other.txt").write_text("Another text altogether, and a little longer.\n" * 9)
    with pytest.raises(RecipeError, match="cannot go on") as caught:
        peftkit.finetune(recipe, out=tmp_path / "run", set=wanted)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "data.ewc",
        "data.kl",
    ]


def test_general_text_that_is_judged_by_is_refused(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "general.txt"
    entry = f"[{{ewc: {{strength: 1, source: {path}, format: text}}}}]"
    with pytest.raises(InputError, match="no row besides those the run is judged by"):
        peftkit.finetune(recipe, out=tmp_path / "run", set={"train.regularize": entry})
