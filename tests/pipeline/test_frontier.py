"""The learn/forget frontier: a run a point, drawn together, going on where it stopped."""

import json
from pathlib import Path

import pytest

import peftkit
from peftkit.errors import RecipeError

RATES = [1e-3, 3e-3, 1e-2, 3e-2]


@pytest.mark.slow
def test_each_method_at_each_rate_is_a_run_and_a_point(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "frontier"
    settings = {"train.steps": 3, "evaluate.samples": 1, "evaluate.rows": 8}
    methods = ["lora", {"method": "top", "blocks": 1}]
    text = recipe.read_text().replace("adapter: {method: lora, rank: 4, dropout: 0.1}\n", "")
    recipe.write_text(text)
    found = peftkit.frontier(recipe, rates=RATES, methods=methods, set=settings, out=out)
    labels = [f"{method}-{rate:g}" for method in ("lora", "top") for rate in RATES]
    assert [point["label"] for point in found] == labels
    assert json.loads((out / "frontier.json").read_text()) == found
    for point in found:
        metrics = json.loads((out / point["label"] / "metrics.json").read_text())
        loss, (remember,) = metrics["difference"]["test"]["loss"], metrics["remember"]
        assert point["gain"] == pytest.approx(-loss["change"])
        assert (point["low"], point["high"]) == pytest.approx((-loss["high"], -loss["low"]))
        rise = remember["after"]["loss"] - remember["before"]["loss"]
        assert point["rise"] == pytest.approx(rise)
    page = (out / "frontier.html").read_text()
    assert "Learned and forgotten" in page
    assert all(f">{label}</text>" in page for label in labels)
    before = {label: (out / label / "adapter").stat().st_mtime_ns for label in labels}
    again = peftkit.frontier(recipe, rates=RATES, methods=methods, set=settings, out=out)
    assert again == found
    assert before == {label: (out / label / "adapter").stat().st_mtime_ns for label in labels}


def test_one_learning_rate_says_nothing(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="3 learning rates say little of a method"):
        peftkit.frontier(recipe, rates=[1e-3, 2e-3, 3e-3, 3e-3])


def test_something_must_be_there_to_be_forgotten(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace(", remember: general.txt", ""))
    with pytest.raises(RecipeError, match="nothing to forget is named"):
        peftkit.frontier(recipe, rates=RATES)
