"""A base that comes back from a fold bit for bit, in every number format, and no other does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_bases import SIZES
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit import Delta
from peftkit.cli.main import main
from peftkit.errors import InputError
from peftkit.merge.undo import undo_fold

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def build(folder: Path, family: str, dtype: torch.dtype) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES))
    model.to(dtype).save_pretrained(folder, max_shard_size="50kB")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def adapt(base: Path, config: Any, folder: Path, size: float = 0.1) -> Path:
    config.task_type = "CAUSAL_LM"
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * size
            parameter.data = (noise + parameter.data.float()).to(parameter.dtype)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


CONFIGS = {
    "lora": ("llama", lambda: LoraConfig(r=4, target_modules=["q_proj", "down_proj"])),
    "conv1d": ("gpt2", lambda: LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True)),
    "dora": ("llama", lambda: LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)),
    "ia3": (
        "llama",
        lambda: IA3Config(
            target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_base_comes_back_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    family, config = CONFIGS[kind]
    base = build(tmp_path / "base", family, dtype)
    adapter = adapt(base, config(), tmp_path / "adapter")
    Delta.load(adapter).fold(base, tmp_path / "folded")
    shutil.rmtree(adapter)  # the fold is enough
    undo_fold(tmp_path / "folded", tmp_path / "again")
    names = sorted(path.name for path in base.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    changed = 0
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (base / name).read_bytes(), name
        changed += (tmp_path / "folded" / name).read_bytes() != (base / name).read_bytes()
    assert changed


@pytest.mark.material
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_real_base_comes_back(dtype: torch.dtype, tmp_path: Path, material: Path) -> None:
    base = tmp_path / "base"
    stories = material / "stories260k-hf"
    AutoModelForCausalLM.from_pretrained(stories, dtype=dtype).save_pretrained(base)
    config = LoraConfig(r=8, target_modules="all-linear")
    adapter = adapt(base, config, tmp_path / "adapter", 0.02)
    found = Delta.load(adapter).fold(base, tmp_path / "folded")
    undo_fold(tmp_path / "folded", tmp_path / "again")
    weights = "model.safetensors"
    before = (base / weights).read_bytes()
    assert (tmp_path / "again" / weights).read_bytes() == before
    assert (tmp_path / "folded" / weights).read_bytes() != before
    adapter_size = (adapter / "adapter_model.safetensors").stat().st_size
    assert found.undo_bytes < adapter_size + 0.35 * len(before)


def test_it_is_typed_and_says_how_much_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = build(tmp_path / "base", "llama", torch.float16)
    adapter = adapt(base, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    folded, again = str(tmp_path / "folded"), str(tmp_path / "again")
    assert main(["fold", str(adapter), "--out", folded]) == 0
    assert "gives the base back, bit for bit" in capsys.readouterr().out
    assert main(["fold", "--undo", folded, "--out", again, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert len(files) == len(list(base.glob("*.safetensors"))) == 1
    assert main(["fold", "--undo", folded, "--out", again]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert main(["fold", "--out", again]) == 2
    assert main(["fold", str(adapter), "--undo", folded, "--out", again]) == 2
    assert AutoModelForCausalLM.from_pretrained(folded).dtype == torch.float16


def test_what_was_changed_since_is_not_taken_back(tmp_path: Path) -> None:
    base = build(tmp_path / "base", "llama", torch.float32)
    adapter = adapt(base, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    folded, again = tmp_path / "folded", tmp_path / "again"
    Delta.load(adapter).fold(base, folded)
    weights = next(path for path in sorted(folded.glob("*.safetensors")))
    before = weights.read_bytes()
    tensors = load_file(weights)
    tensors = {name: tensor + 1e-3 for name, tensor in tensors.items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match="the folded weights were changed since"):
        undo_fold(folded, again)
    weights.write_bytes(before)
    undo = folded / "fold.undo"
    content = bytearray(undo.read_bytes())
    content[-1] ^= 1
    undo.write_bytes(content)
    with pytest.raises(InputError, match="is not what was written"):
        undo_fold(folded, again)
    undo.unlink()
    with pytest.raises(InputError, match="is missing"):
        undo_fold(folded, again)
    with pytest.raises(InputError, match="no fold that can be taken back"):
        undo_fold(base, again)
    assert not again.exists()
