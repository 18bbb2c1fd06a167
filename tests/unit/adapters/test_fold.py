"""A folded model answers as the one with its adapter does; what cannot be folded is told why."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from peftkit.adapters.attach import attach, trainable
from peftkit.adapters.fold import fold, fold_dequantized
from peftkit.adapters.store import add_adapter, load_adapter, save_adapter
from peftkit.base.load import load_base
from peftkit.base.locate import Origin
from peftkit.base.quantize import is_packed
from peftkit.base.targets import linear_layers
from peftkit.errors import InputError, RunError
from peftkit.fast import lora
from peftkit.recipe.sections.adapter import (
    AdapterSection,
    BitfitSection,
    FullSection,
    Ia3Section,
    LayernormSection,
    LoraSection,
    OftSection,
    TopSection,
    VeraSection,
)
from peftkit.recipe.sections.base import BaseSection

IDS = torch.arange(6, 6 + 48).reshape(2, 24)
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 262,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 262, "n_positions": 64},
}
FAMILIES["gpt2"] |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
BESIDE: dict[str, AdapterSection] = {
    "lora": LoraSection(rank=4),
    "rslora": LoraSection(rank=4, variant="rslora"),
    "dora": LoraSection(rank=4, variant="dora"),
    "ia3": Ia3Section(method="ia3"),
    "vera": VeraSection(method="vera", rank=8),
    "oft": OftSection(method="oft", block_size=8),
}
WITHIN: dict[str, AdapterSection] = {
    "layernorm": LayernormSection(method="layernorm"),
    "bitfit": BitfitSection(method="bitfit"),
    "top": TopSection(method="top", blocks=1),
    "full": FullSection(method="full"),
}
IMPOSSIBLE = {("oft", "gpt2"), ("bitfit", "llama")}
FOLDED = [(m, f) for m in BESIDE for f in FAMILIES if (m, f) not in IMPOSSIBLE]
IN_PLACE = [(m, f) for m in WITHIN for f in FAMILIES if (m, f) not in IMPOSSIBLE]
PACKED = [(m, q) for m in BESIDE for q in ("nf4", "fp4", "int8") if (m, q) != ("dora", "int8")]


def build(family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    config = AutoConfig.for_model(family, **FAMILIES[family], **ENDS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.requires_grad_(requires_grad=False).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    into = tmp_path_factory.mktemp(request.param)
    shutil.copytree(tiny_llama, into, dirs_exist_ok=True)
    (into / "generation_config.json").unlink()
    build(request.param).save_pretrained(into)
    return into


def load(folder: Path, quantize: str = "nf4", dtype: str = "float32") -> Any:
    section = BaseSection.model_validate(
        {"model": str(folder), "quantize": quantize, "dtype": dtype}
    )
    return load_base(section, device=torch.device("cpu")).model


def train(model: Any) -> Any:
    """The model after a few long steps."""
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(IDS).logits.float().clone()
    return found


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(("method", "family"), FOLDED)
def test_a_folded_model_answers_as_before(
    method: str, family: str, dtype: torch.dtype, most: float
) -> None:
    base = logits(build(family, dtype))
    model = train(attach(build(family, dtype), BESIDE[method], seed=0))
    wanted = logits(model)
    folded = fold(model)
    assert apart(logits(folded), wanted) <= most
    assert apart(logits(folded), base) > 0.05
    assert type(folded) is type(build(family))
    assert {n: p.dtype for n, p in folded.named_parameters()} == {
        n: p.dtype for n, p in build(family, dtype).named_parameters()
    }
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize(("method", "family"), FOLDED)
def test_what_is_folded_saves_as_a_plain_model(method: str, family: str, tmp_path: Path) -> None:
    folded = fold(train(attach(build(family), BESIDE[method], seed=0)))
    folded.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(folded))


@pytest.mark.parametrize(("method", "family"), IN_PLACE)
def test_what_trains_in_place_is_folded_already(method: str, family: str) -> None:
    model = train(attach(build(family), WITHIN[method], seed=0))
    wanted = logits(model)
    folded = fold(model)
    assert torch.equal(logits(folded), wanted)
    assert apart(wanted, logits(build(family))) > 1e-3
    assert not any(name.startswith("_peftkit") for name in vars(folded))


def test_layers_that_train_in_the_base_format_fold_too() -> None:
    model = attach(build(), LoraSection(rank=4), seed=0)
    assert lora.enable(model) is None
    train(model)
    wanted = logits(model)
    folded = fold(model)
    assert apart(logits(folded), wanted) <= 2e-6
    assert {type(layer) for layer in linear_layers(folded).values()} == {nn.Linear}


def test_adapters_that_are_active_together_fold_together(tmp_path: Path) -> None:
    for seed in (0, 1):
        model = train(attach(build(), LoraSection(rank=4), seed=seed))
        save_adapter(model, tmp_path / str(seed), Origin("a", tmp_path, "1"), method="lora")
    model = add_adapter(load_adapter(build(), tmp_path / "0"), tmp_path / "1", 1)
    wanted = logits(model)
    assert apart(wanted, logits(load_adapter(build(), tmp_path / "0"))) > 0.1
    assert apart(logits(fold(model)), wanted) <= 2e-6


@pytest.mark.parametrize(("method", "quantize"), PACKED)
def test_a_packed_base_is_unpacked_before_it_is_folded_into(
    method: str, quantize: str, folder: Path
) -> None:
    base = logits(load(folder, quantize))
    model = train(attach(load(folder, quantize), BESIDE[method], seed=0))
    wanted = logits(model)
    folded = fold_dequantized(model, IDS)
    assert folded.error == pytest.approx(apart(logits(folded.model), wanted), rel=1e-3, abs=1e-9)
    most = 0.05 if quantize == "int8" else 2e-6  # in int8 the inputs are rounded as well
    assert folded.error <= most
    assert folded.requantized_error > folded.error
    assert apart(logits(folded.model), base) > 0.05
    assert not isinstance(folded.model, PeftModel)
    assert not any(map(is_packed, folded.model.modules()))


def test_the_error_of_packing_again_is_that_of_what_peft_would_fold(folder: Path) -> None:
    model = train(attach(load(folder), LoraSection(rank=4), seed=0))
    wanted = logits(model)
    ours = fold_dequantized(model, IDS)
    again = train(attach(load(folder), LoraSection(rank=4), seed=0))
    assert torch.equal(logits(again), wanted)
    with pytest.warns(UserWarning, match="4-bit linear"):
        theirs = logits(again.merge_and_unload())
    assert apart(theirs, wanted) == pytest.approx(ours.requantized_error, rel=1e-3)
    assert ours.requantized_error > 100 * ours.error


def test_a_packed_base_folds_into_the_format_that_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    model = train(attach(load(folder), LoraSection(rank=4), seed=0))
    folded = fold_dequantized(model, IDS, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in folded.model.parameters()} == {torch.bfloat16}
    assert 1e-4 < folded.error < 3e-2 < 10 * folded.requantized_error
    folded.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(folded.model))
    kinds = {type(layer) for layer in linear_layers(folded.model).values()}
    assert kinds == {Conv1D if "gpt2" in folder.name else nn.Linear}


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_packed_base_is_not_folded_into(quantize: str, folder: Path) -> None:
    model = train(attach(load(folder, quantize), LoraSection(rank=4), seed=0))
    wanted = logits(model)
    with pytest.raises(InputError, match="would round its weights once more") as refusal:
        fold(model)
    assert "fold_dequantized" in str(refusal.value.hint)
    assert torch.equal(logits(model), wanted)


def test_norms_that_trained_on_a_packed_base_are_where_they_belong(folder: Path) -> None:
    model = train(attach(load(folder), LayernormSection(method="layernorm"), seed=0))
    assert torch.equal(logits(fold(model)), logits(model))


@pytest.mark.parametrize("config", [PrefixTuningConfig, PromptTuningConfig])
def test_virtual_tokens_are_not_folded(config: Any) -> None:
    model = get_peft_model(build(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(InputError, match="virtual tokens before the text") as refusal:
        fold(model)
    assert refusal.value.hint


def test_a_network_of_its_own_is_not_folded() -> None:
    model = attach(build(), LoraSection(rank=4), seed=0)
    model.peft_config["default"].peft_type = "BOTTLENECK"
    with pytest.raises(InputError, match="BOTTLENECK cannot be folded into the base"):
        fold(model)


def test_a_base_that_is_not_packed_needs_no_unpacking() -> None:
    for model in (build(), attach(build(), LoraSection(rank=4), seed=0)):
        with pytest.raises(InputError, match="no adapter on a base in 4 or 8 bits"):
            fold_dequantized(model, IDS)


def test_a_sum_that_is_not_finite_is_no_model() -> None:
    model = train(attach(build(), LoraSection(rank=4), seed=0))
    with torch.no_grad():
        next(iter(trainable(model).values())).fill_(float("inf"))
    with pytest.raises(RunError, match="cannot be folded"):
        fold(model)
