"""The laws that every method keeps, on three families, and what each of them refuses."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import DECODER
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adapters.attach import METHODS, attach, base_only, trainable
from peftkit.adapters.store import add_adapter, load_adapter, save_adapter
from peftkit.adapters.verify import module_shapes, verify_adapter
from peftkit.base.locate import Origin
from peftkit.base.targets import first_trained_block, is_norm, linear_layers, list_blocks
from peftkit.errors import InputError, RecipeError
from peftkit.fast import lora, norm
from peftkit.fast.frozen import find_cut
from peftkit.fast.head import find_head
from peftkit.recipe.load import load_any
from peftkit.recipe.schema import Recipe
from peftkit.recipe.sections.adapter import (
    IN_PLACE,
    AdapterSection,
    BitfitSection,
    BottleneckSection,
    FullSection,
    HeadSection,
    Ia3Section,
    LayernormSection,
    LoraSection,
    OftSection,
    PrefixSection,
    PromptSection,
    PTuningSection,
    TopSection,
    VeraSection,
)
from peftkit.recipe.shape import sections
from peftkit.train.optimizer import make_optimizer

REPOSITORY = Path(__file__).resolve().parents[3]
IDS = torch.arange(24).reshape(2, 12)
SHAPE = DECODER | {"num_hidden_layers": 3}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "n_positions": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "gpt2": GPT2 | {"bos_token_id": 0, "eos_token_id": 0},
    "qwen3": SHAPE,
}


def build(family: str = "llama", *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A frozen base of random weights, as `load_base` gives it."""
    config = AutoConfig.for_model(family, **FAMILIES[family] | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.requires_grad_(requires_grad=False).eval()


def sizes_of(model: Any) -> list[tuple[int, int]]:
    """Outputs and inputs of every linear layer of the blocks."""
    turned = model.config.model_type == "gpt2"
    shapes = [tuple(layer.weight.shape) for layer in linear_layers(model).values()]
    return [(into, out) if turned else (out, into) for out, into in shapes]


def count_lora(model: Any) -> int:
    return sum(4 * (out + into) for out, into in sizes_of(model))


def count_dora(model: Any) -> int:
    return count_lora(model) + sum(out for out, _ in sizes_of(model))


def count_ia3(model: Any) -> int:
    config = model.config
    if config.model_type == "gpt2":
        return 3 * (3 * 32 + 4 * 32)  # one layer makes queries, keys and values
    return 3 * (2 * config.num_key_value_heads * config.head_dim + config.intermediate_size)


def count_vera(model: Any) -> int:
    return sum(out + 8 for out, _ in sizes_of(model))


def count_oft(model: Any) -> int:
    return sum(into // 8 * (8 * 7 // 2) for _, into in sizes_of(model))


def count_bottleneck(_: Any) -> int:
    return 3 * (2 * 32 * 4 + 32 + 4)


def count_houlsby(model: Any) -> int:
    return 2 * count_bottleneck(model)


def count_prefix(model: Any) -> int:
    config = model.config
    gpt2 = config.model_type == "gpt2"
    width = 32 if gpt2 else config.num_key_value_heads * config.head_dim
    return int(5 * 2 * 3 * width)


def count_projected(model: Any) -> int:
    width = count_prefix(model) // (5 * 2 * 3)
    return 5 * width + (width + 1) * 7 + (7 + 1) * 2 * 3 * width


def count_prompt(_: Any) -> int:
    return 5 * 32


def count_p_tuning(_: Any) -> int:
    return 5 * 32 + (32 + 1) * 7 + (7 + 1) * 7 + (7 + 1) * 32


def count_lstm(_: Any) -> int:
    each_way = 4 * 7 * (32 + 7 + 2), 4 * 7 * (14 + 7 + 2)  # the second layer reads both ways
    return 5 * 32 + 2 * sum(each_way) + (14 + 1) * 14 + (14 + 1) * 32


def count_layernorm(model: Any) -> int:
    if model.config.model_type == "gpt2":
        return 2 * 32 * (3 * 2 + 1)
    of_heads = 3 * 2 * 8 if model.config.model_type == "qwen3" else 0
    return 32 * (3 * 2 + 1) + of_heads


def count_bitfit(model: Any) -> int:
    return sum(out for out, _ in sizes_of(model)) + 32 * (3 * 2 + 1)


def count_top(model: Any) -> int:
    turned = model.config.model_type == "gpt2"
    block = sum(parameter.numel() for parameter in list_blocks(model)[-1].parameters())
    return 2 * block + 32 * (2 if turned else 1)


def count_head(model: Any) -> int:
    return int(model.get_output_embeddings().weight.numel())


def count_full(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


LAWS: dict[str, tuple[AdapterSection, Callable[[Any], int]]] = {
    "lora": (LoraSection(rank=4), count_lora),
    "lora, rslora": (LoraSection(rank=4, variant="rslora"), count_lora),
    "lora, dora": (LoraSection(rank=4, variant="dora"), count_dora),
    "lora, pissa": (LoraSection(rank=4, variant="pissa"), count_lora),
    "lora, olora": (LoraSection(rank=4, variant="olora"), count_lora),
    "lora, eva": (LoraSection(rank=4, variant="eva"), count_lora),
    "ia3": (Ia3Section(method="ia3"), count_ia3),
    "vera": (VeraSection(method="vera", rank=8), count_vera),
    "oft": (OftSection(method="oft", block_size=8), count_oft),
    "bottleneck, houlsby": (
        BottleneckSection(method="bottleneck", variant="houlsby", reduction=8),
        count_houlsby,
    ),
    "bottleneck, pfeiffer": (BottleneckSection(method="bottleneck", size=4), count_bottleneck),
    "bottleneck, parallel": (
        BottleneckSection(method="bottleneck", variant="parallel", size=4, activation="tanh"),
        count_bottleneck,
    ),
    "prefix": (PrefixSection(method="prefix", tokens=5), count_prefix),
    "prefix, projection": (
        PrefixSection(method="prefix", tokens=5, projection=True, projection_size=7),
        count_projected,
    ),
    "prompt": (PromptSection(method="prompt", tokens=5), count_prompt),
    "p-tuning": (PTuningSection(method="p-tuning", tokens=5, encoder_size=7), count_p_tuning),
    "p-tuning, lstm": (
        PTuningSection(method="p-tuning", tokens=5, encoder="lstm", encoder_size=7),
        count_lstm,
    ),
    "layernorm": (LayernormSection(method="layernorm"), count_layernorm),
    "bitfit": (BitfitSection(method="bitfit"), count_bitfit),
    "head": (HeadSection(method="head"), count_head),
    "top": (TopSection(method="top", blocks=2), count_top),
    "full": (FullSection(method="full"), count_full),
}
IMPOSSIBLE = {("oft", "gpt2"), ("head", "gpt2"), ("bitfit", "llama"), ("bitfit", "qwen3")}
CASES = [(name, f) for name in LAWS for f in FAMILIES if (name, f) not in IMPOSSIBLE]
OF_PEFT = [(name, f) for name, f in CASES if LAWS[name][0].method not in IN_PLACE]
ROUNDED = {"lora, pissa": 2e-6, "lora, olora": 2e-6}
"""Methods whose file holds other factors of the same update: logits are equal up to rounding."""
BEFORE_THE_TEXT = ("prefix", "prompt", "p-tuning")
"""Methods whose tokens take a share of the base's attention from the start."""
LIKE_THE_BASE = [(name, f) for name, f in CASES if LAWS[name][0].method not in BEFORE_THE_TEXT]
SMALL = [(name, f) for name, f in CASES if name in ("layernorm", "bitfit", "top")]


def fresh(name: str, family: str, *, dtype: torch.dtype = torch.float32) -> Any:
    documents = IDS.tolist()
    return attach(build(family, dtype=dtype), LAWS[name][0], seed=0, documents=documents)


def train(model: Any, steps: int = 3) -> Any:
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model.eval()


def save(model: Any, name: str, folder: Path) -> Path:
    method = LAWS[name][0].method
    save_adapter(model, folder, Origin("org/tiny", folder.parent, "0123abc"), method=method)
    return folder


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.clone()  # type: ignore[no-any-return]


def assert_loaded(loaded: Any, model: Any, name: str) -> None:
    allowed = ROUNDED.get(name, 0.0)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=allowed)


def digest_frozen(model: Any) -> str:
    """Digest of all that must not move: parameters that do not train, and buffers."""
    total = hashlib.sha256()
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        if not tensor.requires_grad:
            total.update(name.encode())
            total.update(tensor.detach().float().contiguous().numpy().tobytes())
    return total.hexdigest()


def test_each_method_has_a_section_a_recipe_and_a_row_in_the_laws() -> None:
    tags = [tag for tag, _ in sections(AdapterSection)]
    assert set(tags) == METHODS.keys()
    assert {section.method for section, _ in LAWS.values()} == METHODS.keys()
    recipes = (load_any(path).recipe for path in sorted((REPOSITORY / "recipes").rglob("*.yaml")))
    found = {recipe.adapter.method for recipe in recipes if isinstance(recipe, Recipe)}
    assert found == METHODS.keys()


@pytest.mark.parametrize(("name", "family"), LIKE_THE_BASE)
def test_a_fresh_adapter_changes_not_a_bit(name: str, family: str) -> None:
    before = logits(build(family))
    assert torch.equal(logits(fresh(name, family)), before)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_as_many_parameters_train_as_the_formula_says(name: str, family: str) -> None:
    model = build(family)
    wanted = LAWS[name][1](model)
    found = trainable(attach(model, LAWS[name][0], seed=0))
    assert sum(parameter.numel() for parameter in found.values()) == wanted


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_model_without_memory_has_the_same_parameters(name: str, family: str) -> None:
    with torch.device("meta"):
        model = build(family)
        planned = trainable(attach(model, LAWS[name][0], seed=0))
    made = trainable(fresh(name, family))
    assert {n: p.shape for n, p in planned.items()} == {n: p.shape for n, p in made.items()}


@pytest.mark.parametrize(("name", "family"), CASES)
def test_only_what_should_train_does_and_the_base_comes_back(name: str, family: str) -> None:
    before = logits(build(family))
    model = fresh(name, family)
    start = {n: parameter.detach().clone() for n, parameter in trainable(model).items()}
    frozen = digest_frozen(model)
    train(model)
    assert digest_frozen(model) == frozen
    assert all(parameter.grad is not None for parameter in trainable(model).values())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert not any(torch.equal(start[n], p) for n, p in trainable(model).items())
    after = logits(model)
    assert not torch.equal(after, before)
    with base_only(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), after)


@pytest.mark.parametrize("name", ["lora", "top", "full"])
@pytest.mark.parametrize("flat", [True, False])
def test_asking_the_base_between_steps_changes_no_step(name: str, *, flat: bool) -> None:
    """The flat optimizer holds parameters as views of one buffer: they must be these again."""
    found = []
    for asks in (False, True):
        model = fresh(name, "llama")
        optimizer = make_optimizer(trainable(model), weight_decay=0.1, flat=flat)
        for group in optimizer.param_groups:
            group["lr"] = 0.05
        for _ in range(3):
            optimizer.zero_grad(set_to_none=False)
            model.train()(IDS, labels=IDS).loss.backward()
            optimizer.step()
            if asks:
                with base_only(model):
                    logits(model)
        found.append(logits(model))
    assert torch.equal(*found)
    assert not torch.equal(found[0], logits(build()))


@pytest.mark.parametrize(("name", "family"), CASES)
def test_what_was_saved_is_what_is_loaded(name: str, family: str, tmp_path: Path) -> None:
    model = train(fresh(name, family))
    base = build(family)
    before = logits(base)
    loaded = load_adapter(base, save(model, name, tmp_path / "adapter"))
    assert_loaded(loaded, model, name)
    with base_only(loaded):
        assert torch.equal(logits(loaded), before)


@pytest.mark.parametrize(("name", "family"), OF_PEFT)
def test_what_was_saved_is_what_peft_loads(name: str, family: str, tmp_path: Path) -> None:
    model = train(fresh(name, family))
    folder = save(model, name, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(build(family), str(folder)).eval()
    assert_loaded(theirs, model, name)


@pytest.mark.parametrize(("name", "family"), OF_PEFT)
def test_what_trains_beside_a_base_in_16_bits_has_32(name: str, family: str) -> None:
    model = fresh(name, family, dtype=torch.bfloat16)
    before = logits(build(family, dtype=torch.bfloat16))
    assert torch.equal(logits(model), before) is ((name, family) in LIKE_THE_BASE)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    train(model)
    with base_only(model):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize(("name", "family"), SMALL)
def test_a_file_of_changed_parameters_holds_those_alone(
    name: str, family: str, tmp_path: Path
) -> None:
    model = fresh(name, family)
    folder = save(model, name, tmp_path / "adapter")
    tensors = load_file(folder / "delta.safetensors")
    assert tensors.keys() == trainable(model).keys()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == name.upper()


@pytest.mark.parametrize(("name", "family"), SMALL)
def test_a_matrix_from_elsewhere_is_refused(name: str, family: str, tmp_path: Path) -> None:
    model = fresh(name, family)
    folder = save(model, name, tmp_path / "adapter")
    path = folder / "delta.safetensors"
    embedding = next(n for n, p in model.named_parameters() if p.ndim == 2)
    save_file(load_file(path) | {embedding: torch.zeros(64, 32)}, path)
    for shapes in (None, module_shapes(build(family))):
        with pytest.raises(InputError) as refusal:
            verify_adapter(folder, shapes)
        assert any(embedding in problem for problem in refusal.value.problems)


@pytest.mark.parametrize(("name", "family"), [c for c in SMALL if c[0] != "bitfit"])
def test_a_file_that_lacks_a_weight_is_refused(name: str, family: str, tmp_path: Path) -> None:
    model = fresh(name, family)
    folder = save(model, name, tmp_path / "adapter")
    tensors = load_file(folder / "delta.safetensors")
    lost = next(n for n in tensors if ".2." in n and n.endswith(".weight"))
    del tensors[lost]
    save_file(tensors, folder / "delta.safetensors")
    with pytest.raises(InputError) as refusal:
        verify_adapter(folder, module_shapes(build(family)))
    assert any(lost in problem and "missing" in problem for problem in refusal.value.problems)


@pytest.mark.parametrize("name", ["full", "layernorm", "bitfit", "top"])
def test_a_file_without_tensors_is_refused(name: str, tmp_path: Path) -> None:
    save_file({}, tmp_path / "delta.safetensors")
    config = json.dumps({"peft_type": name.upper()})
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(InputError):
        verify_adapter(tmp_path)


def test_an_adapter_of_another_kind_is_not_added(tmp_path: Path) -> None:
    for name in ("ia3", "oft", "top"):
        save(fresh(name, "llama"), name, tmp_path / name)
    model = load_adapter(build(), tmp_path / "ia3")
    assert add_adapter(model, tmp_path / "ia3", 1).active_adapters == ["default", "adapter1"]
    with pytest.raises(InputError, match="it is of kind OFT, the first of IA3"):
        add_adapter(model, tmp_path / "oft", 2)
    with pytest.raises(InputError, match="it is of kind TOP"):
        add_adapter(model, tmp_path / "top", 2)


@pytest.mark.parametrize(
    ("family", "section", "message"),
    [
        ("llama", BitfitSection(method="bitfit"), "a llama base has none"),
        ("qwen3", TopSection(method="top", blocks=4), "the base has 3 blocks, not 4"),
        ("gpt2", OftSection(method="oft", block_size=8), "oft cannot turn `transformer.h.0"),
        ("llama", OftSection(method="oft", block_size=32), "32 does not divide the 48 inputs"),
        ("llama", VeraSection(method="vera", rank=49), "49 is above the widest target"),
        ("llama", LoraSection(rank=17, variant="dora"), "17 is above what `model.layers.0"),
        ("llama", Ia3Section(method="ia3", feedforward=("up_proj",)), "`up_proj` is none of"),
    ],
)
def test_what_a_base_cannot_hold_is_told(family: str, section: Any, message: str) -> None:
    model = build(family)
    names = list(model.state_dict())
    with pytest.raises(RecipeError) as refusal:
        attach(model, section, seed=0)
    assert message in refusal.value.message
    assert refusal.value.hint
    assert list(model.state_dict()) == names


def test_the_block_size_of_the_hint_fits() -> None:
    with pytest.raises(RecipeError, match="48 inputs") as refusal:
        attach(build(), OftSection(method="oft", block_size=32), seed=0)
    hint = refusal.value.hint
    assert hint is not None
    assert "adapter.block_size=16" in hint
    attach(build(), OftSection(method="oft", block_size=16), seed=0)


def test_dora_refuses_an_output_without_weights() -> None:
    model = build()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = 0
    with pytest.raises(RecipeError, match=r"`model.layers.1.mlp.up_proj` one of them is 0"):
        attach(model, LoraSection(rank=2, variant="dora"), seed=0)
    attach(model, LoraSection(rank=2, variant="dora", targets=("q_proj",)), seed=0)


def test_bitfit_trains_the_biases_that_a_llama_may_have() -> None:
    names = trainable(attach(build(attention_bias=True), BitfitSection(method="bitfit"), seed=0))
    assert len(names) == 3 * 4
    assert all("self_attn" in name for name in names)


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    model = attach(build(), LoraSection(rank=4, alpha=6.0, variant="rslora"), seed=0)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(6.0 / 2.0)
    assert LoraSection(rank=16, variant="rslora").alpha == 8.0


def test_the_seed_decides_what_vera_shares() -> None:
    section = VeraSection(method="vera", rank=8)
    first, again, other = (
        attach(build(), section, seed=seed).base_model.vera_A["default"] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_top_trains_the_blocks_at_the_top_and_the_norm_above() -> None:
    for family, final in (("llama", "model.norm."), ("gpt2", "transformer.ln_f.")):
        model = fresh("top", family)
        names = list(trainable(model))
        assert all(".1." in n or ".2." in n or n.startswith(final) for n in names)
        assert any(n.startswith(final) for n in names)
        assert first_trained_block(model, model) == 1


def test_the_states_below_the_top_blocks_may_be_kept() -> None:
    cut = find_cut(fresh("top", "llama"))
    assert not isinstance(cut, str)
    assert cut.first == 1
    assert isinstance(find_cut(fresh("layernorm", "llama")), str)


def test_fast_paths_leave_alone_what_trains() -> None:
    assert lora.enable(fresh("lora, dora", "llama")) == "it is a variant of LoRA"
    assert lora.enable(fresh("lora, rslora", "llama")) is None
    assert norm.enable(fresh("layernorm", "llama"))[0] == 0
    model = fresh("top", "llama")
    assert norm.enable(model)[0] == 2
    assert sum(is_norm(module) for module in model.modules()) == 7  # five of them train
    train(model)
    assert not isinstance(find_head(model), str)
    assert isinstance(find_head(fresh("full", "llama")), str)
