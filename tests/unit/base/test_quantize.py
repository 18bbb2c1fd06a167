"""A base in 4 or 8 bits computes what its numbers say, trains, and keeps to the promised memory."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, modules
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.starts import start_on_rounding
from peftkit.adapters.store import load_adapter, save_adapter
from peftkit.base import dtype
from peftkit.base.dtype import choose_dtype
from peftkit.base.load import load_base
from peftkit.base.locate import Origin
from peftkit.base.quantize import (
    count_packed,
    is_packed,
    packed_bytes,
    packed_layers,
    plain_weight,
    requantize,
    restore_classes,
    source_tensors,
    unpack,
)
from peftkit.base.targets import linear_layers, shape_of_layer
from peftkit.errors import InputError, RecipeError
from peftkit.fast import lora, norm
from peftkit.fast.frozen import find_cut
from peftkit.fast.head import find_head
from peftkit.recipe.sections.adapter import (
    BitfitSection,
    Ia3Section,
    LayernormSection,
    LoraSection,
    OftSection,
    TopSection,
    VeraSection,
)
from peftkit.recipe.sections.base import BaseSection

CPU = torch.device("cpu")
IDS = torch.arange(6, 6 + 48).reshape(2, 24)
LLAMA = {
    "vocab_size": 262,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 262, "n_positions": 64}
GPT2 |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
METHODS = {
    "lora": LoraSection(rank=4),
    "rslora": LoraSection(rank=4, variant="rslora"),
    "dora": LoraSection(rank=4, variant="dora"),
    "ia3": Ia3Section(method="ia3"),
    "vera": VeraSection(method="vera", rank=8),
    "oft": OftSection(method="oft", block_size=8),
    "layernorm": LayernormSection(method="layernorm"),
}
TRAINED = [(m, q) for m in METHODS for q in ("nf4", "int8") if (m, q) != ("dora", "int8")]
"""A recipe with `dora` on `int8` is refused."""


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_folder(request.param, tiny_llama, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("llama", tiny_llama, tmp_path_factory.mktemp("llama"))


def make_folder(family: str, tokenizer: Path, into: Path, **changes: Any) -> Path:
    """A saved base of random weights, wide enough for blocks of 64 numbers."""
    shutil.copytree(tokenizer, into, dirs_exist_ok=True)
    (into / "generation_config.json").unlink()
    sizes = {"llama": LLAMA, "gpt2": GPT2}[family] | changes
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **sizes, **ends)
        AutoModelForCausalLM.from_config(config).save_pretrained(into)
    return into


def load(folder: Path, quantize: str = "nf4", **section: Any) -> Any:
    values = {"dtype": "float32", "quantize": quantize} | section
    return load_base(BaseSection(model=str(folder), **values), device=CPU).model


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(IDS).logits.clone()
    return found


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model.train()(IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None}


def train(model: Any, steps: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.train()(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def held_bytes(layer: Any) -> int:
    """What a packed layer's weight takes, everything that is needed to unpack it included."""
    state = layer.weight.quant_state
    parts = [layer.weight, state.absmax, state.code]
    if state.nested:
        parts += [state.state2.absmax, state.state2.code, state.offset]
    return sum(part.numel() * part.element_size() for part in parts)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_layers_of_blocks_are_packed_and_nothing_else_is(folder: Path) -> None:
    for quantize in ("nf4", "fp4", "int8"):
        model = load(folder, quantize)
        packed = packed_layers(model)
        assert packed.keys() == linear_layers(model).keys()
        assert len(packed) >= 8
        assert all(not layer.weight.is_floating_point() for layer in packed.values())
        assert type(model.get_output_embeddings()) is nn.Linear
        others = [
            p for name, p in model.named_parameters() if name.rpartition(".")[0] not in packed
        ]
        assert {parameter.dtype for parameter in others} == {torch.float32}
        assert not any(p.requires_grad for p in model.parameters())
        assert not hasattr(model, "_hf_hook")


def test_a_packed_layer_has_the_sizes_that_it_was_written_with(folder: Path) -> None:
    plain = {
        name: shape_of_layer(layer) for name, layer in linear_layers(load(folder, "none")).items()
    }
    found = {name: shape_of_layer(layer) for name, layer in linear_layers(load(folder)).items()}
    turned = "gpt2" in folder.name
    assert found == {name: shape[::-1] if turned else shape for name, shape in plain.items()}


@pytest.mark.parametrize("quantize", ["nf4", "fp4"])
def test_forward_and_backward_are_those_of_the_unpacked_base(folder: Path, quantize: str) -> None:
    section = LoraSection(rank=4)
    packed = attach(load(folder, quantize), section, seed=0)
    plain = attach(unpack(load(folder, quantize)), section, seed=0)
    for _ in range(2):
        assert equal(gradients(packed), gradients(plain))
        assert train(packed) == train(plain)
    assert all(bool(gradient.any()) for gradient in gradients(packed).values())


@pytest.mark.parametrize("repacks", [True, False])
def test_an_evaluation_changes_neither_gradients_nor_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, repacks: bool
) -> None:
    """On CPUs with bfloat16 instructions bitsandbytes repacks in it; here each CPU is said to."""
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: repacks)
    assert Linear4bit(64, 64).support_avx512bf16_for_cpu is repacks
    model = attach(load(folder), LoraSection(rank=4), seed=0)
    train(model)
    weights = {name: layer.weight.data.clone() for name, layer in packed_layers(model).items()}
    before = gradients(model)
    first = logits(model)
    with base_only(model):
        logits(model)
    assert equal(gradients(model), before)
    assert equal({name: layer.weight.data for name, layer in packed_layers(model).items()}, weights)
    assert torch.equal(logits(model), first)


def test_packed_layers_take_what_is_planned(tiny_llama: Path, tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4}
    folder = make_folder("llama", tiny_llama, tmp_path, **wide)
    plain = count_packed(load(folder, "none"))
    found = {}
    for double in (True, False):
        held = sum(map(held_bytes, packed_layers(load(folder, double_quant=double)).values()))
        section = BaseSection(model="a", quantize="nf4", double_quant=double)
        assert held == pytest.approx(plain * packed_bytes(section), rel=0.03)
        found[double] = held
    assert found[True] <= 0.3 * 2 * plain
    assert found[True] < found[False]


def test_the_error_of_nf4_is_below_that_of_plain_steps_and_of_fp4(llama: Path) -> None:
    errors = {}
    weights = {n: layer.weight for n, layer in linear_layers(load(llama, "none")).items()}
    for quantize in ("nf4", "fp4"):
        packed = packed_layers(load(llama, quantize))
        errors[quantize] = error({n: plain_weight(layer) for n, layer in packed.items()}, weights)
    errors["int4"] = error({name: round_in_steps(w) for name, w in weights.items()}, weights)
    assert 0.05 < errors["nf4"] < errors["int4"] < errors["fp4"] < 0.2


def round_in_steps(weight: Tensor) -> Tensor:
    """Four bits in equal steps, with a scale for each 64 numbers, rounded to the nearest."""
    blocks = weight.reshape(-1, 64)
    step = blocks.abs().amax(dim=1, keepdim=True) / 7
    return ((blocks / step).round() * step).reshape(weight.shape)


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    apart = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)
    return (apart / sum(float(w.square().sum()) for w in wanted.values())) ** 0.5


@pytest.mark.parametrize(("method", "quantize"), TRAINED)
def test_a_method_trains_and_comes_back(
    method: str, quantize: str, llama: Path, tmp_path: Path
) -> None:
    section = METHODS[method]
    before = logits(load(llama, quantize))
    model = attach(load(llama, quantize), section, seed=0)
    assert torch.equal(logits(model), before)
    start = {name: p.detach().clone() for name, p in trainable(model).items()}
    losses = train(model, 4)
    assert losses[-1] < losses[0]
    assert not any(torch.equal(start[n], p) for n, p in trainable(model).items())
    with base_only(model):
        assert torch.equal(logits(model), before)
    save_adapter(model, tmp_path / "a", Origin("org/tiny", tmp_path, "1"), method=section.method)
    assert torch.equal(logits(load_adapter(load(llama, quantize), tmp_path / "a")), logits(model))


def test_biases_train_beside_packed_weights(tiny_llama: Path, tmp_path: Path) -> None:
    folder = make_folder("gpt2", tiny_llama, tmp_path)
    model = attach(load(folder), BitfitSection(method="bitfit"), seed=0)
    losses = train(model, 4)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}


def test_bitsandbytes_says_nothing(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train(attach(load(llama, "int8"), LoraSection(rank=4), seed=0), 1)
    assert [record for record in caplog.records if record.name.startswith("bitsandbytes")] == []


def test_fast_paths_say_why_not_or_take_it(llama: Path) -> None:
    for quantize, kind in (("nf4", "Linear4bit"), ("int8", "Linear8bitLt")):
        model = attach(load(llama, quantize), LoraSection(rank=4, layers=(1,)), seed=0)
        assert lora.enable(model) == f"an adapted layer is a {kind}"
        assert norm.enable(model)[0] == 5
        assert not isinstance(find_head(model), str)
        assert not isinstance(find_cut(model), str)


@pytest.mark.parametrize("quantize", ["nf4", "fp4", "int8"])
def test_what_is_unpacked_saves_as_what_it_was(folder: Path, quantize: str, tmp_path: Path) -> None:
    packed = load(folder, quantize)
    wanted = logits(packed)
    layer = next(iter(packed_layers(packed).values()))
    weight = plain_weight(layer)
    again = requantize(weight, layer)
    assert float((again - weight).norm() / weight.norm()) < 0.02
    plain = restore_classes(unpack(packed))
    assert not any(map(is_packed, plain.modules()))
    kinds = {type(layer) for layer in linear_layers(plain).values()}
    assert kinds == {Conv1D if "gpt2" in folder.name else nn.Linear}
    apart = (logits(plain) - wanted).norm() / wanted.norm()
    assert float(apart) < (0.05 if quantize == "int8" else 1e-6)  # int8 rounds inputs as well
    plain.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(plain))


def test_a_base_that_was_published_packed_is_taken_as_it_is(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    packed = load(llama)
    wanted = logits(packed)
    packed.save_pretrained(tmp_path)
    model = load(tmp_path, "none")
    assert torch.equal(logits(model), wanted)
    assert not any(layer.support_avx512bf16_for_cpu for layer in packed_layers(model).values())
    with pytest.raises(InputError, match="is quantized already"):
        load(tmp_path)
    with pytest.raises(RecipeError, match="packed in fewer bits"):
        attach(model, TopSection(method="top"), seed=0)


def test_a_number_that_is_not_finite_is_found_before_it_is_packed(
    llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for quantize in ("nf4", "int8"):
        with pytest.raises(InputError, match=r"not finite, e.g. in `model.layers.1.mlp.up_proj"):
            load(tmp_path, quantize)


def test_a_machine_without_bitsandbytes_is_told_what_to_install(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RecipeError, match="needs bitsandbytes") as refusal:
        load(llama)
    assert "pip install 'peftkit[quantize]'" in str(refusal.value.hint)


def test_what_no_longer_has_its_digits_computes_in_16_bits_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = AutoConfig.for_model("llama", hidden_size=512, dtype="float32")
    for gain, chosen in ((4.0, "bfloat16"), (1.0, "float32")):
        monkeypatch.setattr(dtype, "measure_gain", lambda _width, gain=gain: gain)
        section = BaseSection(model="a", quantize="nf4")
        assert choose_dtype(section, CPU, config)[0] == chosen
    assert choose_dtype(BaseSection(model="a"), CPU, config)[0] == "float32"


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_it_computes_in_the_format_that_is_named(llama: Path, name: str) -> None:
    model = attach(load(llama, dtype=name), LoraSection(rank=4), seed=0)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    losses = train(model, 4)
    assert losses[-1] < losses[0]
    assert logits(model).dtype == getattr(torch, name)


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", ["nf4", "fp4", "int8"])
def test_it_trains_on_a_gpu(llama: Path, quantize: str) -> None:
    section = BaseSection(model=str(llama), quantize=quantize, dtype="bfloat16")
    base = load_base(section, device=torch.device("cuda", 0)).model
    model = attach(base, LoraSection(rank=4), seed=0)
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=0.02)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model.train()(IDS.cuda(), labels=IDS.cuda()).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_loftq_starts_nearer_to_the_base_as_it_was_published(folder: Path) -> None:
    exact = logits(load(folder, "none"))
    section = LoraSection(rank=48, variant="loftq")
    model = attach(load(folder), section, seed=0)
    rounded = logits(model)
    start_on_rounding(model, source_tensors(Origin("base", folder, None)))
    corrected = logits(model)
    assert float((corrected - exact).norm()) < 0.9 * float((rounded - exact).norm())
    with base_only(model):
        assert torch.equal(logits(model), rounded)


def test_loftq_says_which_weight_the_files_lack(llama: Path) -> None:
    model = attach(load(llama), LoraSection(rank=2, variant="loftq"), seed=0)
    with pytest.raises(InputError, match="no unpacked weight of 14 adapted layers"):
        start_on_rounding(model, [("model.embed_tokens.weight", torch.zeros(2, 2))])


def test_a_new_head_is_not_packed(llama: Path) -> None:
    model = load(llama, task="classification", labels=("a", "b"))
    assert len(packed_layers(model)) == 14
    assert type(model.score) is nn.Linear
    trained = trainable(attach(model, LoraSection(rank=2), seed=0))
    assert any("score" in name for name in trained)
