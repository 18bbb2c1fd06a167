"""Adapters that others made: what is fine is loaded as peft loads it, what is not is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config

from peftkit.adapters.attach import base_only
from peftkit.adapters.store import add_adapter, load_adapter, save_adapter
from peftkit.adapters.verify import module_shapes, verify_adapter
from peftkit.base.locate import Origin
from peftkit.base.upstream import quiet
from peftkit.errors import InputError
from peftkit.evaluate.generation import answer_all
from peftkit.pipeline.target import open_target

IDS = torch.arange(8)[None]
WEIGHTS = "adapter_model.safetensors"


def tied() -> Any:
    """A GPT-2, whose head is its embedding and whose layers lie transposed."""
    config = GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).requires_grad_(requires_grad=False).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.clone()  # type: ignore[no-any-return]


def made_by_peft(folder: Path, **settings: Any) -> torch.Tensor:
    """The logits of an adapter whose every number has moved, and which peft saved."""
    config = LoraConfig(**{"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True} | settings)
    with quiet():
        model = get_peft_model(tied(), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return logits(model)


@pytest.fixture(scope="module")
def gpt2(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape and tokenizer of GPT-2 with random weights."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    shutil.copytree(material / "gpt2-tokenizer", folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_real_adapter_writes_on_the_shape_of_its_base(material: Path, gpt2: Path) -> None:
    adapter = material / "lora-gpt2-tigrinya"
    target = open_target(str(gpt2), [f"tigrinya={adapter}"])
    assert target.model.active_adapters == ["tigrinya"]
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    prompt = tokenizer("The weather is")["input_ids"]
    said = answer_all(target.model, [prompt], tokenizer, stops=frozenset(), room=5)[0]
    assert said.tokens == 5
    found = logits(target.model)
    with base_only(target.model):
        assert not torch.equal(logits(target.model), found)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2), str(adapter))
    assert torch.equal(logits(theirs), found)


@pytest.mark.slow
def test_a_real_adapter_is_saved_again_byte_for_byte(
    material: Path, gpt2: Path, tmp_path: Path
) -> None:
    adapter = material / "lora-gpt2-tigrinya"
    base = AutoModelForCausalLM.from_pretrained(gpt2).requires_grad_(requires_grad=False)
    model = load_adapter(base, adapter, base="openai-community/gpt2")
    save_adapter(model, tmp_path / "again", Origin("gpt2", gpt2, None), method="lora")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    old, new = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (adapter, tmp_path / "again")
    )
    assert {key: new[key] for key in old} | {"target_modules": sorted(new["target_modules"])} == old


def test_a_real_adapter_is_refused_on_a_base_of_another_name(material: Path) -> None:
    with pytest.raises(InputError) as refusal:
        verify_adapter(material / "lora-gpt2-tigrinya", base="openai-community/gpt2-medium")
    (problem,) = refusal.value.problems
    assert problem.endswith(": made for `gpt2`, not for `openai-community/gpt2-medium`")
    assert str(refusal.value.hint).startswith("`peftkit generate gpt2 --adapter ")


@pytest.mark.parametrize("names", [["c_attn", "lm_head"], ["lm_head", "c_attn"], ["c_fc"]])
def test_layers_that_lie_either_way_have_the_sizes_that_they_have(
    names: list[str], tmp_path: Path
) -> None:
    """peft writes one word for all of them, which is that of the last one."""
    wanted = made_by_peft(tmp_path, target_modules=names)
    assert torch.equal(logits(load_adapter(tied(), tmp_path)), wanted)


def test_a_head_of_its_own_is_no_longer_the_embedding(tmp_path: Path) -> None:
    wanted = made_by_peft(tmp_path, modules_to_save=["lm_head"])
    base = tied()
    before, embedding = logits(base), base.get_input_embeddings().weight.clone()
    loaded = load_adapter(base, tmp_path)
    assert torch.equal(logits(loaded), wanted)
    assert torch.equal(loaded.get_base_model().get_input_embeddings().weight, embedding)
    with base_only(loaded):
        assert torch.equal(logits(loaded), before)
    assert not torch.equal(wanted, before)


def test_trained_rows_of_a_tied_embedding_are_those_of_the_head(tmp_path: Path) -> None:
    wanted = made_by_peft(tmp_path, trainable_token_indices=[3, 5])
    before = logits(tied())
    loaded = load_adapter(tied(), tmp_path)
    assert torch.equal(logits(loaded), wanted)
    assert not torch.equal(wanted[..., 3], before[..., 3])
    with base_only(loaded):
        assert torch.equal(logits(loaded), before)


def test_nothing_stands_beside_one_that_has_rows_of_tokens(tmp_path: Path) -> None:
    """peft looks for rows in each that is put beside one that has some."""
    rows, none = tmp_path / "rows", tmp_path / "none"
    made_by_peft(rows, trainable_token_indices=[3, 5])
    made_by_peft(none)
    with pytest.raises(InputError, match="the first brings rows of tokens of its own"):
        add_adapter(load_adapter(tied(), rows), none, 1)
    with pytest.raises(InputError, match="it brings rows of tokens of its own"):
        add_adapter(load_adapter(tied(), none), rows, 1)


def test_a_tied_copy_is_told(tmp_path: Path) -> None:
    made_by_peft(tmp_path, modules_to_save=["lm_head"], ensure_weight_tying=True)
    assert sum("lora" not in name for name in load_file(tmp_path / WEIGHTS)) == 2
    with pytest.raises(InputError) as refusal:
        verify_adapter(tmp_path, module_shapes(tied()))
    (problem,) = refusal.value.problems
    assert "lm_head.weight`: a copy that `ensure_weight_tying` made" in problem
