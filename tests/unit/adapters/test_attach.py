"""A fresh adapter changes nothing, only its own parameters train, and the base stays the base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import AutoModelForCausalLM, GPT2Config

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.base.targets import linear_layers
from peftkit.errors import RecipeError
from peftkit.recipe.sections.adapter import FullSection, LoraSection

IDS = torch.arange(24).reshape(2, 12)


def build(family: str, folder: Path) -> Any:
    """A frozen base, as `load_base` gives it."""
    if family == "llama":
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        config = GPT2Config(
            vocab_size=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
    return model.requires_grad_(requires_grad=False).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.clone()  # type: ignore[no-any-return]


def own_weights(model: Any) -> dict[str, torch.Tensor]:
    """The base's weights, whatever adapter is around them, under the base's own names."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor.clone()
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }


def train_a_step(model: Any) -> None:
    optimizer = torch.optim.SGD(list(trainable(model).values()), lr=1.0)
    for _ in range(2):  # the first moves B only, because B is 0; then A has a gradient too
        model.train()(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_fresh_adapter_changes_not_a_bit(family: str, tiny_llama: Path) -> None:
    model = build(family, tiny_llama)
    before = logits(model)
    assert torch.equal(logits(attach(model, LoraSection(rank=4), seed=0)), before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_the_adapter_trains_and_the_base_stays_what_it_is(
    family: str, tiny_llama: Path
) -> None:
    model = build(family, tiny_llama)
    weights, before = own_weights(model), logits(model)
    adapted = attach(model, LoraSection(rank=4), seed=0)
    own = {name: parameter.detach().clone() for name, parameter in trainable(adapted).items()}
    assert own
    assert all("lora_" in name for name in own)
    train_a_step(adapted)
    changed = trainable(adapted)
    assert changed.keys() == own.keys()
    assert not any(torch.equal(changed[name], own[name]) for name in own)
    after = own_weights(adapted)
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert not torch.equal(logits(adapted), before)
    with base_only(adapted):
        assert torch.equal(logits(adapted), before)
    assert not torch.equal(logits(adapted), before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_full_trains_every_parameter(family: str, tiny_llama: Path) -> None:
    model = build(family, tiny_llama)
    before = logits(model)
    adapted = attach(model, FullSection(method="full"), seed=0)
    assert torch.equal(logits(adapted), before)
    assert trainable(adapted).keys() == dict(model.named_parameters()).keys()
    own = {name: parameter.detach().clone() for name, parameter in trainable(adapted).items()}
    train_a_step(adapted)
    assert not torch.equal(logits(adapted), before)
    assert not any(torch.equal(own[name], now) for name, now in trainable(adapted).items())


@settings(max_examples=25)
@given(
    rank=some.integers(1, 16),
    targets=some.lists(
        some.sampled_from(["q_proj", "k_proj", "o_proj", "up_proj", "mlp.down_proj"]), min_size=1
    ),
    layers=some.sampled_from(["all", "upper-half", (0,), (0, 1)]),
)
def test_an_adapter_has_rank_times_in_plus_out_numbers_a_layer(
    rank: int, targets: list[str], layers: Any, tiny_llama: Path
) -> None:
    model = build("llama", tiny_llama)
    blocks = {"all": (0, 1), "upper-half": (1,)}.get(layers, layers)
    meant = [
        layer
        for name, layer in linear_layers(model).items()
        if any(name.endswith(f".{target}") for target in targets)
        and any(f".{block}." in name for block in blocks)
    ]
    assert meant
    expected = sum(rank * (layer.in_features + layer.out_features) for layer in meant)
    section = LoraSection(rank=rank, targets=tuple(targets), layers=layers)
    adapted = attach(model, section, seed=0)
    assert sum(parameter.numel() for parameter in trainable(adapted).values()) == expected


def test_all_linear_is_every_linear_layer_of_every_block(tiny_llama: Path) -> None:
    for family, layers in (("llama", 14), ("gpt2", 8)):
        model = build(family, tiny_llama)
        shapes = [tuple(layer.weight.shape) for layer in linear_layers(model).values()]
        adapted = attach(model, LoraSection(rank=2), seed=0)
        assert len(shapes) == layers
        assert len(trainable(adapted)) == 2 * layers
        total = sum(parameter.numel() for parameter in trainable(adapted).values())
        assert total == 2 * sum(map(sum, shapes))


def test_the_upper_half_is_the_upper_half(tiny_llama: Path) -> None:
    adapted = attach(build("llama", tiny_llama), LoraSection(rank=2, layers="upper-half"), seed=0)
    names = list(trainable(adapted))
    assert len(names) == 14
    assert all(".layers.1." in name for name in names)


def test_the_seed_decides_the_start_and_no_other_draw(tiny_llama: Path) -> None:
    def start(seed: int) -> list[torch.Tensor]:
        adapted = attach(build("llama", tiny_llama), LoraSection(rank=2), seed=seed)
        return [parameter for name, parameter in trainable(adapted).items() if "lora_A" in name]

    state = torch.random.get_rng_state()
    first = start(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    assert all(map(torch.equal, first, start(3)))
    assert not any(map(torch.equal, first, start(4)))


def test_the_update_is_scaled_by_alpha_over_rank(tiny_llama: Path) -> None:
    section = LoraSection(rank=4, alpha=6.0, targets=("q_proj",), layers=(0,))
    model = build("llama", tiny_llama)
    layer = linear_layers(model)["model.layers.0.self_attn.q_proj"]
    adapted = attach(model, section, seed=0)
    train_a_step(adapted)
    down, up = trainable(adapted).values()
    assert (down.shape, up.shape) == ((4, 32), (32, 4))
    rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    expected = rows @ (layer.weight + 6.0 / 4 * up @ down).T
    module = adapted.get_base_model().model.layers[0].self_attn.q_proj.eval()
    torch.testing.assert_close(module(rows), expected, rtol=1e-5, atol=1e-6)
    assert LoraSection(rank=4).alpha == 8.0


def test_dropout_acts_while_training_only(tiny_llama: Path) -> None:
    adapted = attach(build("llama", tiny_llama), LoraSection(rank=4, dropout=0.5), seed=0)
    train_a_step(adapted)
    assert torch.equal(logits(adapted), logits(adapted))
    with torch.inference_mode():
        adapted.train()
        assert not torch.equal(adapted(IDS).logits, adapted(IDS).logits)


@pytest.mark.parametrize(
    ("family", "targets", "rank", "message"),
    [
        ("llama", ("k_proj",), 17, "17 is above what `model.layers.0.self_attn.k_proj` (16 × 32)"),
        ("llama", ("self_attn.k_proj",), 17, "17 is above what `model.layers.0.self_attn.k_proj`"),
        ("llama", ("all-linear",), 100, "100 is above what"),
        ("gpt2", ("c_attn",), 17, "17 is above what `transformer.h.0.attn.c_attn` (16 × 48)"),
    ],
)
def test_a_rank_that_a_layer_cannot_hold_is_told(
    family: str, targets: tuple[str, ...], rank: int, message: str, tiny_llama: Path
) -> None:
    model = build(family, tiny_llama)
    with pytest.raises(RecipeError) as refusal:
        attach(model, LoraSection(rank=rank, targets=targets), seed=0)
    assert refusal.value.message.startswith(f"adapter.rank: {message}")
    assert refusal.value.exit_code == 2
    assert refusal.value.hint is not None
    limit = int(refusal.value.hint.split("=")[1].split("`")[0])
    attach(model, LoraSection(rank=limit, targets=targets), seed=0)


def test_what_is_wrong_with_targets_or_layers_is_told_before_anything_changes(
    tiny_llama: Path,
) -> None:
    model = build("llama", tiny_llama)
    names = list(model.state_dict())
    with pytest.raises(RecipeError, match="no such layers"):
        attach(model, LoraSection(rank=2, targets=("c_attn",)), seed=0)
    with pytest.raises(RecipeError, match="there is no block 2"):
        attach(model, LoraSection(rank=2, layers=(0, 2)), seed=0)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("target", ["c_attn", "attn.c_proj", "transformer.h.1.mlp.c_fc"])
def test_transposed_layers_are_known_by_any_name(target: str, tiny_llama: Path) -> None:
    """peft would warn, and warnings are errors here."""
    adapted = attach(build("gpt2", tiny_llama), LoraSection(rank=2, targets=(target,)), seed=0)
    assert adapted.peft_config["default"].fan_in_fan_out
    assert len(trainable(adapted)) == (2 if "1" in target else 4)
