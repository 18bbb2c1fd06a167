"""One whole run: the folder it leaves, what vanilla peft makes of it, and what it tells."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import peftkit
from peftkit.errors import RecipeError
from peftkit.pipeline.target import open_target

FILES = (
    "recipe.yaml",
    "recipe.resolved.json",
    "lock.json",
    "plan.json",
    "data.json",
    "steps.jsonl",
    "metrics.json",
    "findings.json",
    "report.html",
    "report.md",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/README.md",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


def test_a_run_leaves_a_complete_folder(recipe: Path, tmp_path: Path) -> None:
    run = peftkit.finetune(recipe, out=tmp_path / "run")
    assert [name for name in FILES if not (run.path / name).exists()] == []
    steps = [json.loads(line) for line in (run.path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert steps[-1]["loss"] < steps[0]["loss"]
    evaluations = (run.path / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in evaluations] == [0, 5, 10, 12]
    metrics = run.metrics
    assert metrics["validation"]["loss"] < metrics["baselines"]["base"]["loss"]
    assert metrics["test"]["rows"] == 24
    assert metrics["difference"]["test"]["loss"]["high"] < 0
    assert metrics["verdict"]["helped"] == "yes"
    assert [item["source"] for item in metrics["remember"]] == ["general.txt"]
    assert metrics["remember"][0]["before"]["loss"] != metrics["remember"][0]["after"]["loss"]
    assert {"no-effect", "leakage", "forgetting"} <= {finding["id"] for finding in run.findings}
    assert len(run.samples) == 3
    assert not list(run.path.rglob("*.tmp-*"))


def test_vanilla_peft_gives_the_same_logits(recipe: Path, tiny_llama: Path, tmp_path: Path) -> None:
    run = peftkit.finetune(recipe, out=tmp_path / "run")
    ours = open_target(str(run.path)).model
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    ids = torch.arange(6, 60)[None]
    with torch.inference_mode():
        plain = base(ids).logits
        theirs = PeftModel.from_pretrained(base, str(run.adapter)).eval()(ids).logits
        assert torch.equal(ours(ids).logits, theirs)
    assert (theirs - plain).abs().max() > 1e-3


def test_what_is_finished_is_read_back(recipe: Path, tmp_path: Path) -> None:
    first = peftkit.finetune(recipe, out=tmp_path / "run")
    stamp = (first.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    again = peftkit.finetune(recipe, out=tmp_path / "run")
    assert again.metrics == first.metrics
    assert (first.adapter / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(
    recipe: Path, tmp_path: Path
) -> None:
    peftkit.finetune(recipe, out=tmp_path / "run")
    with pytest.raises(RecipeError) as caught:
        peftkit.finetune(recipe, out=tmp_path / "run", set={"train.steps": 14})
    assert caught.value.problems == ("train.steps: 12 -> 14",)
    fresh = peftkit.finetune(recipe, out=tmp_path / "run", set={"train.steps": 14}, fresh=True)
    assert len((fresh.path / "steps.jsonl").read_text().splitlines()) == 14


def test_changed_data_is_refused(recipe: Path, tmp_path: Path) -> None:
    peftkit.finetune(recipe, out=tmp_path / "run")
    rows = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(rows.replace("number 5 ", "number five "))
    with pytest.raises(RecipeError, match="cannot go on") as caught:
        peftkit.finetune(recipe, out=tmp_path / "run")
    assert "data" in caught.value.problems[0]


def test_accumulation_changes_neither_loss_nor_adapter(recipe: Path, tmp_path: Path) -> None:
    """16 rows in one go, in four or one by one: the same run."""
    losses = []
    for micro in (16, 4, 1):
        run = peftkit.finetune(
            recipe,
            out=tmp_path / f"micro{micro}",
            set={
                "train.batch.rows": 16,
                "train.batch.micro_rows": micro,
                "data.packing": "false",
                "adapter.dropout": 0,
            },
        )
        losses.append(run.metrics["validation"]["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[2] == pytest.approx(losses[0], abs=1e-4)


def test_full_training_goes_through_the_same_loop(
    recipe: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    run = peftkit.finetune(
        recipe,
        out=tmp_path / "full",
        set={"adapter": "{method: full}", "train.learning_rate": 1e-3},
    )
    assert (run.adapter / "delta.safetensors").exists()
    assert run.metrics["validation"]["loss"] < run.metrics["baselines"]["base"]["loss"]
    tuned = open_target(str(run.path)).model
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    ids = torch.arange(6, 60)[None]
    assert not torch.equal(tuned(ids).logits, base(ids).logits)


def test_random_weights_keep_the_shape_and_lose_the_knowledge(recipe: Path, tmp_path: Path) -> None:
    scratch = peftkit.finetune(
        recipe, out=tmp_path / "scratch", set={"base.weights": "random", "train.steps": 2}
    )
    pretrained = peftkit.finetune(recipe, out=tmp_path / "run", set={"train.steps": 2})
    before = [run.metrics["baselines"]["base"]["loss"] for run in (scratch, pretrained)]
    assert before[0] != before[1]
    assert (
        scratch.metrics["baselines"]["base"]["tokens"]
        == pretrained.metrics["baselines"]["base"]["tokens"]
    )


@pytest.mark.material
def test_stories260k_learns_shakespeare(material: Path, tmp_path: Path) -> None:
    """The figure of the issue: validation loss from about 5.0 to at most 3.0."""
    path = tmp_path / "shakespeare.yaml"
    path.write_text(
        f"""\
base: {{model: {material}/stories260k-hf}}
adapter: {{rank: 8, alpha: 16}}
data:
  train: {{source: {material}/tinyshakespeare/input.txt, format: text}}
  max_length: 128
train: {{steps: 150, batch: {{rows: 16}}, learning_rate: 1e-2}}
evaluate: {{every: 1000, rows: 128}}
"""
    )
    run = peftkit.finetune(path, out=tmp_path / "run")
    assert run.metrics["baselines"]["base"]["loss"] > 4.5
    assert run.metrics["validation"]["loss"] <= 3.0
