"""Whole runs on a base in 4 bits: what they leave is theirs, vanilla peft's, and the same again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import peftkit
from peftkit.adapters.fold import fold_dequantized
from peftkit.base.quantize import packed_layers
from peftkit.errors import InputError, RecipeError
from peftkit.pipeline.target import open_target

pytestmark = pytest.mark.slow
QLORA = {"adapter.method": "qlora"}
IDS = torch.arange(6, 60)[None]


def test_a_run_on_4_bits_learns_and_says_so(recipe: Path, tmp_path: Path) -> None:
    run = peftkit.finetune(recipe, out=tmp_path / "run", set=QLORA)
    resolved = json.loads((run.path / "recipe.resolved.json").read_text())
    assert resolved["adapter"]["method"] == "lora"
    assert resolved["base"]["quantize"] == "nf4"
    assert (
        "packed in nf4"
        in json.loads((run.path / "lock.json").read_text())["choices"]["why"]["dtype"]
    )
    plan = json.loads((run.path / "plan.json").read_text())
    unpacked = (262 * 2 + 5) * 32  # embeddings, head and norms
    assert plan["base_bytes"] == pytest.approx(
        4 * unpacked + 0.516 * (plan["parameters"] - unpacked), rel=0.001
    )
    assert run.metrics["validation"]["loss"] < run.metrics["baselines"]["base"]["loss"] - 0.1


def test_vanilla_peft_on_the_same_4_bits_gives_the_same_logits(
    recipe: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    run = peftkit.finetune(recipe, out=tmp_path / "run", set=QLORA)
    target = open_target(str(run.path))
    assert len(packed_layers(target.model)) == 14
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        tiny_llama, quantization_config=settings, dtype=torch.float32
    )
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    with torch.inference_mode():
        plain = base.eval()(IDS).logits.clone()
        theirs = PeftModel.from_pretrained(base, str(run.adapter)).eval()(IDS).logits
        assert torch.equal(target.model(IDS).logits, theirs)
    assert float((theirs - plain).abs().max()) > 1e-3
    with pytest.raises(InputError, match="packed in 4 or 8 bits"):
        target.fold()
    folded = fold_dequantized(target.model, IDS)
    assert folded.error < 1e-5 < folded.requantized_error


def test_an_interrupted_run_ends_with_the_same_bytes(recipe: Path, tmp_path: Path) -> None:
    whole = peftkit.finetune(recipe, out=tmp_path / "whole", set=QLORA)
    torn = tmp_path / "torn"
    shutil.copytree(whole.path, torn)
    last = max((torn / "checkpoints").iterdir(), key=lambda path: int(path.name.rsplit("-")[-1]))
    shutil.rmtree(last)
    shutil.rmtree(torn / "adapter")
    (torn / "metrics.json").unlink()
    again = peftkit.finetune(recipe, out=torn, set=QLORA)
    name = "adapter_model.safetensors"
    assert (again.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()
    assert again.metrics["validation"] == whole.metrics["validation"]


def test_another_number_of_bits_is_another_run(recipe: Path, tmp_path: Path) -> None:
    few = {"train.steps": 2, "evaluate.samples": 1}
    peftkit.finetune(recipe, out=tmp_path / "run", set=QLORA | few)
    with pytest.raises(RecipeError) as refusal:
        peftkit.finetune(recipe, out=tmp_path / "run", set={"base.quantize": "fp4"} | few)
    assert "base.quantize: nf4 -> fp4" in refusal.value.problems


def test_a_run_on_8_bits_learns(recipe: Path, tmp_path: Path) -> None:
    run = peftkit.finetune(recipe, out=tmp_path / "run", set={"base.quantize": "int8"})
    assert run.metrics["validation"]["loss"] < run.metrics["baselines"]["base"]["loss"] - 0.1
    assert len(packed_layers(open_target(str(run.path)).model)) == 14


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there are pages to move")
def test_pages_are_refused_where_there_are_none(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="only a CUDA GPU has pages to move") as refusal:
        peftkit.finetune(
            recipe, out=tmp_path / "run", set={**QLORA, "train.optimizer": "paged-adamw"}
        )
    assert refusal.value.hint == "`--set train.optimizer=auto`"
    assert not (tmp_path / "run" / "lock.json").exists()


def test_norms_of_a_quantized_base_learn(recipe: Path, tmp_path: Path) -> None:
    run = peftkit.finetune(
        recipe,
        out=tmp_path / "run",
        set={"base.quantize": "nf4", "adapter": "{method: layernorm}", "train.learning_rate": 0.05},
    )
    assert run.metrics["validation"]["loss"] < run.metrics["baselines"]["base"]["loss"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"base.quantize": "none"}, {"base.quantize": "nf4"}),
        ({"base.quantize": "nf4"}, {"base.quantize": "fp4"}),
        ({"base.weights": "random", "seed": 4}, {"base.weights": "random", "seed": 5}),
    ],
    ids=["quantized", "otherwise", "drawn"],
)
def test_kept_states_are_those_of_the_very_same_weights(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one: dict[str, object],
    other: dict[str, object],
) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    upper = {"adapter.layers": "[1]", "adapter.dropout": 0, "evaluate.samples": 1}
    off = {"train.fast": "{frozen: off}"}
    peftkit.finetune(recipe, out=tmp_path / "one", set=one | upper)
    kept = peftkit.finetune(recipe, out=tmp_path / "kept", set=other | upper)
    plain = peftkit.finetune(recipe, out=tmp_path / "plain", set=other | upper | off)
    assert json.loads((kept.path / "lock.json").read_text())["choices"]["frozen"]
    losses = [run.metrics["validation"]["loss"] for run in (kept, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
