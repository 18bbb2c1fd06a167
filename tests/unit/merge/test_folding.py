"""Folds against vanilla peft's, what rounding loses, and what no weight can hold."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_bases import IDS, SIZES
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit import Delta
from peftkit.adapters.bottleneck import BottleneckConfig
from peftkit.errors import InputError, RunError


def build(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES))
    model.to(dtype).save_pretrained(folder, max_shard_size="50kB")
    return folder


def adapt(base: Path, config: Any, folder: Path) -> Path:
    config.task_type = "CAUSAL_LM"
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data = (noise + parameter.data.float()).to(parameter.dtype)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@torch.inference_mode()
def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base).float().eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    return model(IDS).logits.clone()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", LoraConfig(r=4, target_modules=["q_proj", "down_proj"])),
        ("gpt2", LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)),
        ("gpt2", IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True)),
        (
            "llama",
            IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        ),
    ],
)
def test_a_folded_base_answers_as_the_base_with_the_adapter(
    family: str, config: Any, tmp_path: Path
) -> None:
    base = build(tmp_path / "base", family)
    assert len(list(base.glob("*.safetensors"))) > 1
    adapter = adapt(base, config, tmp_path / "adapter")
    found = Delta.load(adapter).fold(base, tmp_path / "folded")
    assert 0 < found.relative < 1e-6
    wanted = logits(base, adapter)
    assert not torch.allclose(wanted, logits(base), atol=1e-3)
    torch.testing.assert_close(logits(tmp_path / "folded"), wanted, atol=1e-5, rtol=1e-4)
    noted = json.loads((tmp_path / "folded" / "fold.json").read_text())
    assert noted["lost"]["tensors"] == found.lost


def test_what_a_fold_takes_back_is_a_change_again(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    adapter = adapt(base, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    delta = Delta.load(adapter)
    delta.fold(base, tmp_path / "folded")
    back = Delta.load(tmp_path / "folded", str(base)).compress(rank=4)
    assert sorted(back.low) == sorted(delta.low)
    assert (back - delta).norm < 1e-5 * delta.norm
    (-delta).fold(tmp_path / "folded", tmp_path / "back")
    torch.testing.assert_close(logits(tmp_path / "back"), logits(base), atol=1e-5, rtol=1e-4)


def test_rounding_to_16_bits_is_measured(tmp_path: Path) -> None:
    base = build(tmp_path / "base", dtype=torch.bfloat16)
    adapter = adapt(base, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    small = Delta.load(adapter) * 0.005
    found = small.fold(base, tmp_path / "folded")
    back = Delta.load(tmp_path / "folded", str(base))
    missing = sum(
        float((small.low[name.removesuffix(".weight")].dense() - change).square().sum())
        for name, change in back.dense.items()
    )
    assert found.relative == pytest.approx(missing**0.5 / small.norm, rel=1e-6)
    assert found.relative > 0.05
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    assert model.dtype == torch.bfloat16


def test_a_weight_that_stands_for_two_takes_no_change_of_one(tmp_path: Path) -> None:
    base = build(tmp_path / "base", "gpt2")  # its head is its embedding
    adapter = adapt(base, LoraConfig(r=2, target_modules=["wte"]), tmp_path / "adapter")
    with pytest.raises(InputError, match="both the embedding and the head"):
        Delta.load(adapter).fold(base, tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_what_no_weight_can_hold_is_refused(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    config = BottleneckConfig(bottleneck_size=4, target_modules=["down_proj"])
    adapter = adapt(base, config, tmp_path / "adapter")
    with pytest.raises(InputError, match="no weight of it does what they do"):
        Delta.load(adapter).fold(base, tmp_path / "folded")
    with pytest.raises(InputError, match="nothing to fold"):
        Delta().fold(base, tmp_path / "folded")
    other = build(tmp_path / "gpt2", "gpt2")
    lora = adapt(base, LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "lora")
    with pytest.raises(InputError, match="has no tensor"):
        Delta.load(lora).fold(other, tmp_path / "folded")
    values = json.loads((base / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="is quantized"):
        Delta.load(lora).fold(base, tmp_path / "folded")


def test_a_weight_is_folded_as_the_base_has_it_whatever_peft_noted(tmp_path: Path) -> None:
    base = build(tmp_path / "base", "gpt2")
    config = LoraConfig(r=4, target_modules=["attn.c_proj"], fan_in_fan_out=True)
    adapter = adapt(base, config, tmp_path / "adapter")
    wanted = logits(base, adapter)
    noted = json.loads((adapter / "adapter_config.json").read_text())
    noted["fan_in_fan_out"] = False  # as peft writes it where a linear layer comes last
    (adapter / "adapter_config.json").write_text(json.dumps(noted))
    Delta.load(adapter).fold(base, tmp_path / "folded")
    torch.testing.assert_close(logits(tmp_path / "folded"), wanted, atol=1e-5, rtol=1e-4)


def test_biases_are_scaled_where_files_lack_the_first_part_of_names(tmp_path: Path) -> None:
    base = build(tmp_path / "base", "gpt2")
    config = (base / "config.json").read_text()
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    for block in model.transformer.h:
        torch.nn.init.normal_(block.attn.c_attn.bias)
    model.transformer.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text(config)
    ia3 = IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True)
    adapter = adapt(tmp_path / "bare", ia3, tmp_path / "adapter")
    Delta.load(adapter).fold(tmp_path / "bare", tmp_path / "folded")
    wanted = logits(tmp_path / "bare", adapter)
    torch.testing.assert_close(logits(tmp_path / "folded"), wanted, atol=1e-5, rtol=1e-4)


def test_what_is_taken_out_of_bare_files_loads_into_the_model(tmp_path: Path) -> None:
    """GPT-2's own files lack `transformer.` in their names, and peft looks for it."""
    base = build(tmp_path / "base", "gpt2")
    config = (base / "config.json").read_text()
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    for name in ("bare", "tuned"):
        model.transformer.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(config)
        generator = torch.Generator().manual_seed(1)
        for block in model.transformer.h:
            change = torch.randn(block.attn.c_attn.weight.shape, generator=generator)
            block.attn.c_attn.weight.data += 0.1 * change
    found = Delta.load(tmp_path / "tuned", str(tmp_path / "bare"))
    assert sorted(found.dense) == [f"transformer.h.{n}.attn.c_attn.weight" for n in range(2)]
    found.compress(energy=1.0).save(tmp_path / "adapter")
    wanted = logits(tmp_path / "tuned")
    taken = logits(tmp_path / "bare", tmp_path / "adapter")
    torch.testing.assert_close(taken, wanted, atol=1e-5, rtol=1e-4)


def test_a_fold_that_changes_nothing_is_no_model(tmp_path: Path) -> None:
    base = build(tmp_path / "base", dtype=torch.bfloat16)
    adapter = adapt(base, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    delta = Delta.load(adapter)
    for nothing in (delta - delta, delta * 1e-12):
        with pytest.raises(RunError, match="would be the base itself"):
            nothing.fold(base, tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_a_fold_into_another_base_is_refused(tmp_path: Path) -> None:
    base = build(tmp_path / "base")
    adapter = adapt(base, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    delta = replace(Delta.load(adapter), facts={"base": "org/other"})
    with pytest.raises(InputError, match="made for `org/other`, not for `builtin:tiny`"):
        delta.fold("builtin:tiny", tmp_path / "folded")
