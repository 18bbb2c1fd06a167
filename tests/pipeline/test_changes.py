"""A run goes on with what it began with, or with what it is told may have changed, and says so."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftkit
from peftkit.errors import InputError, RecipeError, RunError

pytestmark = pytest.mark.slow


def change_data(recipe: Path) -> None:
    rows = recipe.with_name("train.jsonl")
    rows.write_text(rows.read_text().replace("number 5 ", "number five "))


def lock(run: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads((run / "lock.json").read_text())
    return read


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "steps.jsonl").read_text().splitlines()]


def test_what_is_allowed_goes_on_and_is_recorded(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    peftkit.finetune(recipe, out=out)
    before = lock(out)
    longer = {"train.steps": 14}
    with pytest.raises(RecipeError) as caught:
        peftkit.finetune(recipe, out=out, set=longer)
    assert caught.value.exit_code == 2
    assert caught.value.problems == ("train.steps: 12 -> 14",)
    assert "`--allow-change train.steps`" in str(caught.value.hint)
    assert lock(out) == before

    run = peftkit.finetune(recipe, out=out, set=longer, allow_change=["train.steps"])
    assert steps(out) == list(range(1, 15))
    assert run.metrics["validation"]["loss"] > 0
    evaluations = (out / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in evaluations] == [0, 5, 10, 12, 14]
    began = {name: before[name] for name in ("recipe", "data")}
    recorded = lock(out)["changes"]
    assert isinstance(recorded, list)
    assert [change["changes"] for change in recorded] == [["train.steps: 12 -> 14"]]
    assert {name: recorded[0]["from"][name] for name in began} == began

    again = peftkit.finetune(recipe, out=out, set=longer)
    assert again.metrics == run.metrics
    assert lock(out)["changes"] == recorded


def test_changed_data_needs_to_be_allowed_as_a_whole(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    peftkit.finetune(recipe, out=out)
    change_data(recipe)
    with pytest.raises(RecipeError) as caught:
        peftkit.finetune(recipe, out=out, allow_change=["train.steps"])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["data.train"]
    assert "sha256" in caught.value.problems[0]
    assert "`--allow-change train.steps --allow-change data`" in str(caught.value.hint)
    peftkit.finetune(recipe, out=out, allow_change=["data"])
    assert len(lock(out)["changes"]) == 1  # type: ignore[arg-type]


def test_a_changed_base_needs_to_be_allowed(recipe: Path, tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "moved" / tiny_llama.name
    shutil.copytree(tiny_llama, base)
    out = tmp_path / "run"
    peftkit.finetune(recipe, out=out, set={"train.steps": 2})
    moved = {"train.steps": 2, "base.model": str(base)}
    peftkit.finetune(recipe, out=out, set=moved)  # the same base in another place
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError) as caught:
        peftkit.finetune(recipe, out=out, set=moved)
    assert caught.value.problems[0].startswith("base.digest: sha256 ")
    assert "`--allow-change base`" in str(caught.value.hint)
    peftkit.finetune(recipe, out=out, set=moved, allow_change=["base"])


def test_checkpoints_of_another_run_are_refused_with_the_difference(
    recipe: Path, tmp_path: Path
) -> None:
    """As when somebody copies them, or removes the files that say what they are of."""
    out = tmp_path / "run"
    peftkit.finetune(recipe, out=out)
    alone = tmp_path / "alone"
    shutil.copytree(out / "checkpoints", alone / "checkpoints")
    warmer = {"train.learning_rate": 0.02, "train.steps": 14}
    with pytest.raises(RecipeError, match="is of another run") as caught:
        peftkit.finetune(recipe, out=alone, set=warmer)
    changes = ["train.learning_rate: 0.01 -> 0.02", "train.steps: 12 -> 14"]
    assert sorted(caught.value.problems) == changes
    assert not (alone / "lock.json").exists()
    peftkit.finetune(recipe, out=alone, set=warmer, allow_change=["train"])
    assert [change["changes"] for change in lock(alone)["changes"]] == [  # type: ignore[attr-defined]
        list(caught.value.problems)
    ]


@pytest.mark.parametrize(
    ("change", "allowed", "said"),
    [
        ({"adapter.rank": 8}, "adapter", "is of other parameters than the recipe makes"),
        ({"train.steps": 5}, "train.steps", "5 is less than the 12 that are already taken"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_leaves_the_run_as_it_was(
    recipe: Path, tmp_path: Path, change: dict[str, int], allowed: str, said: str
) -> None:
    out = tmp_path / "run"
    first = peftkit.finetune(recipe, out=out)
    with pytest.raises(RecipeError, match=said):
        peftkit.finetune(recipe, out=out, set=change, allow_change=[allowed])
    assert peftkit.finetune(recipe, out=out).metrics == first.metrics


def test_a_plan_alone_binds_nobody(recipe: Path, tmp_path: Path) -> None:
    """After `--dry-run`, the recipe may be anything again."""
    from peftkit.pipeline.finetune import prepare
    from peftkit.recipe.load import load_recipe
    from peftkit.report.holding import hold

    out = tmp_path / "run"
    with hold(out) as folder:
        prepare(load_recipe(recipe), folder)
    peftkit.finetune(recipe, out=out, set={"train.steps": 2})
    assert steps(out) == [1, 2]


@pytest.mark.parametrize("save_every", [1, 100])
def test_a_run_that_diverges_saves_nothing_that_is_not_finite(
    recipe: Path, tmp_path: Path, save_every: int
) -> None:
    out = tmp_path / "run"
    hot = {"train.learning_rate": 1e30, "train.save_every": save_every, "train.warmup": 0}
    with pytest.raises(RunError, match=r"diverged at step|not finite"):
        peftkit.finetune(recipe, out=out, set=hot)
    assert not (out / "adapter").exists()
    assert list(out.rglob("*.tmp-*")) == []
    for path in out.rglob("*.safetensors"):
        assert all(bool(torch.isfinite(t).all()) for t in load_file(path).values()), path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_that_is_not_finite_is_refused(
    recipe: Path, tiny_llama: Path, tmp_path: Path, value: float
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not finite") as caught:
        peftkit.finetune(recipe, out=tmp_path / "run", set={"base.model": str(base)})
    assert "layers.1.mlp.up_proj.weight" in str(caught.value)
    assert caught.value.exit_code == 65
