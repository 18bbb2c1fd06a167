"""Families whose kernels read weights past their layers: what would have no effect is left out."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adapters.attach import attach, trainable
from peftkit.base.targets import choose_targets, linear_layers
from peftkit.errors import RecipeError
from peftkit.recipe.sections.adapter import LoraSection

IDS = torch.arange(24).reshape(2, 12)
SHARED: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
FALCON = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "mamba": ({"state_size": 4}, ["in_proj"]),
    "mamba2": ({"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}, ["in_proj"]),
    "falcon_h1": (
        ATTENTION | FALCON | {"mamba_n_groups": 1, "mamba_chunk_size": 8},
        ["down_proj", "gate_proj", "in_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    ),
}


def build(family: str) -> Any:
    config = AutoConfig.for_model(family, **SHARED | FAMILIES[family][0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return model.requires_grad_(requires_grad=False).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_leaves_out_what_would_have_no_effect(family: str) -> None:
    model = build(family)
    assert choose_targets(model, ("all-linear",)) == FAMILIES[family][1]
    assert any(name.endswith(".out_proj") for name in linear_layers(model))
    adapted = attach(model, LoraSection(rank=2), seed=0)
    adapted.train()(IDS, labels=IDS).loss.backward()
    assert trainable(adapted)
    assert all(parameter.grad is not None for parameter in trainable(adapted).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_who_names_such_a_layer_is_told(family: str) -> None:
    why = f"a {family} base reads its weights past the layer"
    with pytest.raises(RecipeError) as refusal:
        attach(build(family), LoraSection(rank=2, targets=("in_proj", "mixer.out_proj")), seed=0)
    assert refusal.value.problems == (
        f"adapter.targets: `mixer.out_proj` cannot be adapted: {why}",
    )
    assert refusal.value.hint == f"this base has: all-linear, {', '.join(FAMILIES[family][1])}"
