"""Top blocks that start from random numbers: the same ones every time, above the base's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adapters.attach import attach, base_only, trainable
from peftkit.adapters.store import load_adapter, save_adapter
from peftkit.base.locate import Origin
from peftkit.base.targets import final_norm, list_blocks
from peftkit.errors import RecipeError
from peftkit.recipe.load import load_recipe
from peftkit.recipe.sections.adapter import TopSection

IDS = torch.arange(24).reshape(2, 12)
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 64, "n_positions": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "gpt2": GPT2 | {"bos_token_id": 0, "eos_token_id": 0},
    "qwen3": SHAPE | {"head_dim": 8},
    "gemma2": SHAPE | {"head_dim": 8},  # its norms start at 0
}
SECTION = TopSection(method="top", blocks=3, reset=2)


@pytest.fixture(params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A base in a folder, every number of it unlike a start."""
    config = AutoConfig.for_model(request.param, **FAMILIES[request.param])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(folder: Path) -> Any:
    """As `load_base` gives it: read from files, which transformers never draws anew."""
    return AutoModelForCausalLM.from_pretrained(folder).requires_grad_(requires_grad=False).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.clone()  # type: ignore[no-any-return]


def numbers(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_only_the_topmost_start_anew_and_whole(saved: Path) -> None:
    model = load(saved)
    before = numbers(model)
    attach(model, SECTION, seed=0)
    after = numbers(model)
    inside = [{id(p) for p in block.parameters()} for block in list_blocks(model)]
    reset = inside[2] | inside[3]
    for name, parameter in model.named_parameters():
        changed = not torch.equal(before[name], after[name])
        assert changed == (id(parameter) in reset), name
    assert {id(p) for p in trainable(model).values()} == (
        inside[1] | reset | {id(p) for p in final_norm(model).parameters()}
    )


def test_the_start_is_that_of_the_family(saved: Path) -> None:
    """Norms and biases begin with what a new model of this family has, matrices as wide."""
    model = attach(load(saved), SECTION, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        fresh = AutoModelForCausalLM.from_config(model.config)
    for mine, new in zip(list_blocks(model)[2:], list_blocks(fresh)[2:], strict=True):
        wanted = dict(new.named_parameters())
        for name, parameter in mine.named_parameters():
            if parameter.ndim == 1:
                assert torch.equal(parameter, wanted[name]), name
            else:
                ratio = float(parameter.detach().std() / wanted[name].detach().std())
                assert ratio == pytest.approx(1, abs=0.15), name


def test_the_seed_decides_the_start_and_no_other_draw(saved: Path) -> None:
    def start(seed: int) -> torch.Tensor:
        return torch.cat(
            [p.flatten() for p in attach(load(saved), SECTION, seed=seed).parameters()]
        )

    state = torch.random.get_rng_state()
    first = start(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(first, start(3))
    assert not torch.equal(first, start(4))


def test_the_base_is_the_untouched_one(saved: Path, tmp_path: Path) -> None:
    before = logits(load(saved))
    model = attach(load(saved), SECTION, seed=0)
    started = logits(model)
    assert not torch.allclose(started, before, atol=1e-2)
    with base_only(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), started)
    save_adapter(model, tmp_path / "adapter", Origin("org/tiny", saved, "0"), method="top")
    held = load_file(tmp_path / "adapter" / "delta.safetensors")
    assert held.keys() == trainable(model).keys()
    loaded = load_adapter(load(saved), tmp_path / "adapter")
    assert torch.equal(logits(loaded), started)
    with base_only(loaded):
        assert torch.equal(logits(loaded), before)


def test_a_model_without_memory_is_planned_the_same(saved: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(saved))
        planned = trainable(attach(model, SECTION, seed=0))
    made = trainable(attach(load(saved), SECTION, seed=0))
    assert {n: p.shape for n, p in planned.items()} == {n: p.shape for n, p in made.items()}


def test_a_base_that_draws_no_start_is_told(saved: Path) -> None:
    model = load(saved)
    block = list_blocks(model)[3]
    block.register_parameter("odd", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(RecipeError, match=r"knows no start for `.*3\.odd`"):
        attach(model, SECTION, seed=0)


def test_more_than_trains_cannot_start_anew(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "base: {model: builtin:tiny}\n"
        "data: {train: rows.jsonl}\n"
        "adapter: {method: top, blocks: 1, reset: 2}\n"
    )
    with pytest.raises(RecipeError) as refusal:
        load_recipe(path)
    assert refusal.value.problems == (
        "line 3: adapter: `reset` is 2, and only 1 blocks train; set `blocks` to 2 as well",
    )
    load_recipe(path, ["adapter.blocks=2"])
