"""Where LoRA starts, and the ranks, scales, biases and rates that layers may have of their own."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.lora import rate_factors
from peftkit.adapters.starts import Spread, correct_rounding
from peftkit.adapters.store import load_adapter, save_adapter
from peftkit.adapters.verify import module_shapes, verify_adapter
from peftkit.base.locate import Origin
from peftkit.base.targets import linear_layers
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.adapter import Ia3Section, LoraSection
from peftkit.train.checkpoint import newest_checkpoint, restore, save_checkpoint
from peftkit.train.optimizer import make_optimizer, set_rate

IDS = torch.arange(24).reshape(2, 12)
DOCUMENTS: list[list[int]] = IDS.tolist()
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "gpt2": GPT2 | STILL | {"bos_token_id": 0, "eos_token_id": 0},
}
ON_WEIGHTS = ("pissa", "olora")
STARTS = (*ON_WEIGHTS, "eva")


def build(family: str = "llama", *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A frozen base of random weights, as `load_base` gives it."""
    config = AutoConfig.for_model(family, **FAMILIES[family] | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.requires_grad_(requires_grad=False).eval()


def adapted(family: str = "llama", **section: Any) -> Any:
    return attach(build(family), LoraSection(**section), seed=0, documents=DOCUMENTS)


def train(model: Any, steps: range = range(3), optimizer: Any = None) -> Any:
    optimizer = optimizer or make_optimizer(trainable(model), weight_decay=0.1)
    for _ in steps:
        optimizer.zero_grad(set_to_none=False)
        model.train()(IDS, labels=IDS).loss.backward()
        set_rate(optimizer, 0.02)
        optimizer.step()
    return model.eval()


def save(model: Any, folder: Path) -> Path:
    save_adapter(model, folder, Origin("org/tiny", folder.parent, "0123abc"), method="lora")
    return folder


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    return model.eval()(IDS).logits.clone()  # type: ignore[no-any-return]


def lora_layers(model: Any) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A")
    }


def product(layer: Any) -> Tensor:
    """The update that a layer's own factors make, (out, in)."""
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    return (update * layer.scaling["default"]).detach()  # type: ignore[no-any-return]


def weight_of(layer: Any) -> Tensor:
    weight = layer.get_base_layer().weight.detach()
    return weight.t() if layer.fan_in_fan_out else weight  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_pissa_starts_on_the_nearest_matrix_of_its_rank(family: str) -> None:
    for name, layer in lora_layers(adapted(family, rank=4, variant="pissa")).items():
        sizes = torch.linalg.svdvals(weight_of(layer))
        error = torch.linalg.matrix_norm(weight_of(layer) - product(layer))
        assert float(error) == pytest.approx(float(sizes[4:].norm()), rel=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_olora_starts_on_an_orthonormal_basis(family: str) -> None:
    for layer in lora_layers(adapted(family, rank=4, variant="olora")).values():
        basis = layer.lora_B["default"].weight.detach()
        assert torch.allclose(basis.t() @ basis, torch.eye(4), atol=1e-5)
        spanned = basis @ basis.t() @ weight_of(layer)  # what is left of the weight in their span
        assert torch.allclose(product(layer), 2 * spanned, atol=1e-5)  # the scale is two


@pytest.mark.parametrize("variant", ON_WEIGHTS)
def test_the_start_is_that_of_peft(variant: str) -> None:
    """peft 0.21 turns the matrices of GPT-2 the wrong way for `olora`, so it is asked of llama."""
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=variant, target_modules="all-linear")  # type: ignore[arg-type]
    theirs = lora_layers(get_peft_model(build(), config))
    ours = lora_layers(adapted(rank=4, variant=variant))
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        assert torch.allclose(product(layer), product(theirs[name]), atol=1e-5), name


@pytest.mark.parametrize("variant", ON_WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_as_if_the_start_had_been_taken_out_of_the_base(
    family: str, variant: str
) -> None:
    ours = adapted(family, rank=4, variant=variant)
    published = attach(build(family), LoraSection(rank=4), seed=0)
    with torch.no_grad():
        for (_, layer), start in zip(
            lora_layers(published).items(), lora_layers(ours).values(), strict=True
        ):
            layer.lora_A["default"].weight.copy_(start.lora_A["default"].weight)
            layer.lora_B["default"].weight.copy_(start.lora_B["default"].weight)
            out = product(start)
            layer.get_base_layer().weight.sub_(out.t() if layer.fan_in_fan_out else out)
    before = logits(build(family))
    assert torch.equal(logits(ours), before)
    assert torch.allclose(logits(published), before, atol=1e-5)
    assert torch.allclose(logits(train(ours)), logits(train(published)), atol=1e-4)
    assert (logits(ours) - before).abs().max() > 1e-2


@pytest.mark.parametrize("variant", STARTS)
def test_a_start_in_16_bits_is_the_base_to_the_last_bit(variant: str) -> None:
    base = build(dtype=torch.bfloat16)
    before = logits(base)
    model = attach(base, LoraSection(rank=4, variant=variant), seed=0, documents=DOCUMENTS)
    assert torch.equal(logits(model), before)
    train(model)
    with base_only(model):
        assert torch.equal(logits(model), before)


def build_packed(folder: Path) -> Any:
    """A base in 4 bits, as a quantized one is loaded."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes would repack what was asked
    return model.requires_grad_(requires_grad=False).eval()


@pytest.mark.parametrize("variant", ["plain", "dora", *STARTS])
def test_a_packed_base_is_started_on_as_it_is(
    variant: str, tiny_llama: Path, tmp_path: Path
) -> None:
    base = build_packed(tiny_llama)
    before = logits(base)
    section = LoraSection(rank=4, variant=variant, targets=("q_proj", "down_proj"))
    model = attach(base, section, seed=0, documents=DOCUMENTS)
    assert torch.equal(logits(model), before)
    folder = save(train(model), tmp_path / "adapter")
    with base_only(model):
        assert torch.equal(logits(model), before)
    loaded = load_adapter(build_packed(tiny_llama), folder)
    assert torch.allclose(logits(loaded), logits(model), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(model), before, rtol=0, atol=1e-2)


@pytest.mark.parametrize("variant", STARTS)
def test_a_run_that_goes_on_ends_with_the_same_bits(variant: str, tmp_path: Path) -> None:
    straight = train(adapted(rank=4, variant=variant), range(6))
    first = adapted(rank=4, variant=variant)
    optimizer = make_optimizer(trainable(first), weight_decay=0.1)
    train(first, range(3), optimizer)
    save_checkpoint(tmp_path, 3, trainable(first), optimizer, digests={}, keep=1)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    again = attach(build(), LoraSection(rank=4, variant=variant), seed=0)  # without documents
    other = make_optimizer(trainable(again), weight_decay=0.1)
    restore(checkpoint, trainable(again), other)
    train(again, range(3, 6), other)
    for name, parameter in trainable(again).items():
        assert torch.equal(parameter, trainable(straight)[name]), name
    assert torch.equal(logits(again), logits(straight))


@pytest.mark.filterwarnings("ignore:.lora_bias=True")  # peft's own, where peft loads
@pytest.mark.parametrize("variant", ON_WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_on_weights_is_saved_as_plain_lora_of_twice_the_rank(
    family: str, variant: str, tmp_path: Path
) -> None:
    one = "c_attn" if family == "gpt2" else "q_proj"
    model = adapted(
        family, rank=4, variant=variant, bias=True, rank_pattern={one: 6}, alpha_pattern={one: 3.0}
    )
    names = {name: tuple(p.shape) for name, p in model.named_parameters()}
    folder = save(train(model), tmp_path / "adapter")
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == names
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16.0)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({one: 12}, {one: 6.0})
    assert config["init_lora_weights"] is True
    assert model.peft_config["default"].r == 4
    for loaded in (
        load_adapter(build(family), folder),
        PeftModel.from_pretrained(build(family), str(folder)),
    ):
        assert torch.allclose(logits(loaded), logits(model), rtol=0, atol=2e-6)
    assert not torch.allclose(logits(model), logits(build(family)), rtol=0, atol=1e-2)


def test_a_start_on_weights_needs_room_for_twice_its_rank(tmp_path: Path) -> None:
    section = LoraSection(rank=16, variant="pissa", targets=("q_proj",))
    model = attach(build(), section, seed=0)
    verify_adapter(save(model, tmp_path / "adapter"), module_shapes(build()))
    with pytest.raises(RecipeError, match=r"17 is above .* saved at twice the rank") as refusal:
        attach(build(), section.model_copy(update={"rank": 17}), seed=0)
    assert refusal.value.hint == "`--set adapter.rank=16` or less"


def inputs_of(name: str, documents: list[list[int]]) -> Tensor:
    """What a layer of the base is given for each token."""
    base, found = build(), []
    layer = linear_layers(base)[name]
    layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(0, -2)))
    with torch.no_grad():
        for document in documents:
            base(torch.tensor([document]))
    return torch.cat(found)


def test_eva_starts_in_the_directions_in_which_inputs_vary_most() -> None:
    for name, layer in lora_layers(adapted(rank=3, variant="eva")).items():
        rows = inputs_of(name, DOCUMENTS)
        right = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:3]
        down = layer.lora_A["default"].weight.detach()
        assert torch.allclose(down @ down.t(), torch.eye(3), atol=1e-5), name
        kept = torch.linalg.svdvals(down @ right.t())  # cosines between the two spaces
        assert float(kept.min()) > 0.999, name
        assert bool((layer.lora_B["default"].weight == 0).all())


def test_eva_depends_on_its_documents_alone() -> None:
    section = LoraSection(rank=4, variant="eva")
    models = [
        attach(build(), section, seed=seed, documents=documents)
        for seed, documents in ((0, DOCUMENTS), (1, DOCUMENTS), (0, [[5, 3, 9, 60, 2, 7, 1, 33]]))
    ]
    first, again, other = (
        [layer.lora_A["default"].weight for layer in lora_layers(model).values()]
        for model in models
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_what_few_inputs_leave_open_is_drawn() -> None:
    section = LoraSection(rank=8, variant="eva")
    model = attach(build(), section, seed=0, documents=[[1, 2, 3]])
    drawn = attach(build(), LoraSection(rank=8), seed=0)
    for name, layer in lora_layers(model).items():
        down = layer.lora_A["default"].weight
        wanted = lora_layers(drawn)[name].lora_A["default"].weight
        assert torch.allclose(down[:2] @ down[:2].t(), torch.eye(2), atol=1e-5)
        assert torch.equal(down[2:], wanted[2:]), name


def test_directions_found_bit_by_bit_are_those_found_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 12, generator=generator) * torch.arange(1, 13) + 5
    whole, parts = Spread(12), Spread(12)
    whole.add(rows)
    for part in rows.split(7):
        parts.add(part)
    right = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2]
    for found in (whole, parts):
        assert torch.allclose((found.directions @ right.t()).abs(), torch.eye(12), atol=1e-3)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_correcting_what_was_rounded_away_leaves_less_of_it(rank: int) -> None:
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    held = (weight * 2).round() / 2
    down, up = correct_rounding(weight, held.to(torch.bfloat16), rank)
    assert (down.shape, up.shape) == ((rank, 16), (24, rank))
    left = torch.linalg.matrix_norm(weight - held - up @ down)
    best = torch.linalg.svdvals(weight - held)[rank:].norm()
    assert float(left) < float(torch.linalg.matrix_norm(weight - held))
    assert float(left) == pytest.approx(float(best), rel=1e-4, abs=1e-4)


def test_layers_may_have_a_rank_and_a_scale_of_their_own(tmp_path: Path) -> None:
    section = {
        "rank": 4,
        "rank_pattern": {"q_proj": 2, "0.mlp.down_proj": 8},
        "alpha_pattern": {"layers.1.mlp.down_proj": 5.0},
    }
    model = adapted(**section)
    layers = lora_layers(model)
    for name, layer in layers.items():
        wanted = 2 if "q_proj" in name else 8 if "0.mlp.down_proj" in name else 4
        assert layer.lora_A["default"].weight.shape[0] == wanted, name
        assert layer.scaling["default"] == (5 / 4 if "1.mlp.down_proj" in name else 2), name
    folder = save(train(model), tmp_path / "adapter")
    for loaded in (
        load_adapter(build(), folder),
        PeftModel.from_pretrained(build(), str(folder)),
    ):
        assert torch.equal(logits(loaded), logits(model))


def test_a_resolved_section_means_what_it_meant() -> None:
    section = LoraSection(rank=4, rank_pattern={"q_proj": 8}, alpha_pattern={"k_proj": 3.0})
    assert section.alpha_pattern == {"q_proj": 16.0, "k_proj": 3.0}
    assert LoraSection.model_validate_json(section.model_dump_json()) == section
    named = LoraSection(rank=4, alpha=6.0, rank_pattern={"q_proj": 8})
    assert named.alpha_pattern == {}
    rooted = LoraSection(rank=4, variant="rslora", rank_pattern={"q_proj": 8})
    assert (rooted.alpha, rooted.alpha_pattern) == (8.0, {})


@pytest.mark.parametrize(
    ("section", "message", "hint"),
    [
        ({"rank_pattern": {"q_porj": 4}}, "rank_pattern: `q_porj` is the name", "`q_proj`"),
        ({"alpha_pattern": {".*_proj": 4.0}}, "alpha_pattern: `.*_proj` is the", "_proj"),
        (
            {"rank_pattern": {"q_proj": 4}, "targets": ("v_proj",)},
            "`q_proj` is the name of no layer that the adapter goes on",
            "v_proj",
        ),
        (
            {"rank_pattern": {"q_proj": 4, "0.self_attn.q_proj": 8}},
            "both `q_proj` and `0.self_attn.q_proj` mean `model.layers.0.self_attn.q_proj`",
            "longer names",
        ),
        (
            {"rank_pattern": {"k_proj": 17}},
            "adapter.rank_pattern.k_proj: 17 is above what `model.layers.0.self_attn.k_proj`",
            "adapter.rank_pattern.k_proj=16",
        ),
        ({"bias": True, "variant": "dora"}, "adapter.bias: dora trains no biases", "plain"),
    ],
)
def test_what_no_layer_can_hold_is_told(section: dict[str, Any], message: str, hint: str) -> None:
    model = build()
    names = list(model.state_dict())
    with pytest.raises(RecipeError) as refusal:
        attach(model, LoraSection(**{"rank": 4} | section), seed=0)
    assert message in refusal.value.message
    assert hint in str(refusal.value.hint)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("family", FAMILIES)
def test_an_update_may_have_a_bias(
    family: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = adapted(family, rank=4, bias=True)
    before = logits(build(family))
    assert torch.equal(logits(model), before)
    biases = {n: p for n, p in trainable(model).items() if n.endswith(".lora_B.default.bias")}
    assert len(biases) == len(lora_layers(model))
    folder = save(train(model), tmp_path / "adapter")
    assert all(bool((bias != 0).any()) for bias in biases.values())
    assert not [w for w in recwarn if "lora_bias" in str(w.message) or "shape" in str(w.message)]
    for loaded in (
        load_adapter(build(family), folder),
        PeftModel.from_pretrained(build(family), str(folder)),
    ):
        assert torch.equal(logits(loaded), logits(model))


def test_a_bias_that_is_missing_or_of_the_base_is_refused(tmp_path: Path) -> None:
    folder = save(adapted(rank=4, bias=True), tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in tensors if name.endswith(".lora_B.bias"))
    for changed in (
        {name: tensor for name, tensor in tensors.items() if name != lost},
        tensors | {lost.replace(".lora_B.bias", ".bias"): tensors[lost].clone()},
    ):
        save_file(changed, path)
        with pytest.raises(InputError) as refusal:
            verify_adapter(folder, module_shapes(build()))
        assert any(lost.removesuffix(".lora_B.bias") in p for p in refusal.value.problems)


def test_the_second_matrices_may_learn_faster() -> None:
    model = adapted(rank=4, bias=True)
    parameters = trainable(model)
    factors = rate_factors(LoraSection(b_learning_rate_ratio=16.0), parameters)
    assert factors == {name: 16.0 for name in parameters if ".lora_B." in name}
    assert rate_factors(LoraSection(), parameters) == {}
    assert rate_factors(Ia3Section(method="ia3"), parameters) == {}
    plain = copy.deepcopy(model)
    for each, own in ((model, factors), (plain, {})):
        optimizer = make_optimizer(trainable(each), weight_decay=0.0, factors=own)
        train(each, range(1), optimizer)
    for name, parameter in trainable(model).items():
        if name in factors:  # they start at zero, so this is how far the first step went
            assert torch.allclose(parameter, 16 * trainable(plain)[name], rtol=1e-3), name
