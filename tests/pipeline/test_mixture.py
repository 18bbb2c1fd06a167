"""A run over a mixture: what was planned is what was seen, and stopping changes nothing of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import peftkit

pytestmark = pytest.mark.slow


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


@pytest.fixture
def mixed(recipe: Path) -> Path:
    """Two sources, the smaller one three times as heavy, and general text to replay."""
    few = [{"instruction": f"Say {number} in red.", "output": "red"} for number in range(12)]
    rows = "".join(json.dumps(row) + "\n" for row in few)
    (recipe.parent / "few.jsonl").write_text(rows)
    words = recipe.read_text().replace(
        "  train: train.jsonl\n",
        "  train:\n"
        "    - {source: train.jsonl, weight: 1, origin: human}\n"
        "    - {source: few.jsonl, weight: 3, origin: generated}\n"
        "  replay: {source: general.txt, format: text, fraction: 0.2, origin: human}\n",
    )
    recipe.write_text(words.replace("train: {steps: 12, ", "train: {epochs: 1, "))
    return recipe


def test_what_was_trained_on_is_what_is_told(mixed: Path, tmp_path: Path) -> None:
    run = peftkit.finetune(mixed, out=tmp_path / "run")
    steps, seen = lines(run.path), run.metrics["seen"]
    assert sum(line["tokens"] for line in steps) == sum(e["tokens"] for e in seen["sources"])
    assert 8 * len(steps) == sum(each["rows"] for each in seen["sources"])
    plan = json.loads((run.path / "plan.json").read_text())
    assert plan["epochs"] == pytest.approx(1, abs=0.1)
    assert plan["tokens_per_epoch"] == pytest.approx(
        sum(line["tokens"] for line in steps), rel=0.05
    )
    told = {each["source"]: each for each in seen["sources"]}
    assert told["train.jsonl"]["times"] >= 1
    assert told["few.jsonl"]["times"] > 10
    asked = {e["source"]: e for e in json.loads((run.path / "data.json").read_text())["mixture"]}
    assert asked["general.txt"]["replay"]
    for name, each in told.items():
        assert each["share_of_tokens"] == pytest.approx(asked[name]["share_of_tokens"], abs=0.02)
    assert [each["origin"] for each in seen["origins"]] == ["human", "generated"]
    assert sum(each["share_of_tokens"] for each in seen["origins"]) == pytest.approx(1)
    (finding,) = [each for each in run.findings if each["id"] == "repeated"]
    assert finding["severity"] == "warning"
    assert "`few.jsonl`" in finding["sentence"]
    assert "mixture" in {each["id"] for each in run.findings}
    rows = {each["origin"]: each for each in run.metrics["by_origin"]["validation"]}
    assert sum(each["rows"] for each in rows.values()) == run.metrics["validation"]["rows"]
    text = (run.path / "report.md").read_text()
    assert "### Trained on" in text
    assert "### By origin" in text


def test_kept_states_are_those_of_every_row_of_a_mixture(mixed: Path, tmp_path: Path) -> None:
    common = {"adapter.layers": "upper-half", "adapter.dropout": 0.0, "data.augment.copies": 1}
    kept = peftkit.finetune(mixed, out=tmp_path / "kept", set=common)
    plain = peftkit.finetune(
        mixed, out=tmp_path / "plain", set=common | {"train.fast": {"frozen": "off"}}
    )
    on = [json.loads((run.path / "lock.json").read_text())["choices"] for run in (kept, plain)]
    assert [each["frozen"] for each in on] == [True, False]
    assert json.loads((kept.path / "data.json").read_text())["train"]["augmented"]["rows"] > 60
    one, other = ([line["loss"] for line in lines(run.path)] for run in (kept, plain))
    assert one == pytest.approx(other, rel=1e-4)
    assert "Of these, changed copies" in (kept.path / "report.md").read_text()


def test_stopping_changes_nothing_of_a_mixture(mixed: Path, tmp_path: Path) -> None:
    whole = peftkit.finetune(mixed, out=tmp_path / "whole")
    shutil.copytree(whole.path, tmp_path / "parts")
    *_, newest = sorted((tmp_path / "parts/checkpoints").iterdir())
    shutil.rmtree(newest)
    for name in ("report.html", "metrics.json", "adapter/adapter_model.safetensors"):
        (tmp_path / "parts" / name).unlink()
    parts = peftkit.finetune(mixed, out=tmp_path / "parts")
    one, other = ([line["loss"] for line in lines(run.path)] for run in (whole, parts))
    assert one == other
    one, other = (run.adapter / "adapter_model.safetensors" for run in (whole, parts))
    assert one.read_bytes() == other.read_bytes()
    assert whole.metrics["seen"] == parts.metrics["seen"]
