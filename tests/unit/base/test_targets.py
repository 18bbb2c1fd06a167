"""Layers are named as the recipe names them, and names that mean nothing are told."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from peftkit.base.targets import choose_blocks, choose_targets, count_blocks, linear_layers
from peftkit.errors import RecipeError

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def gpt2(layers: int = 2) -> Any:
    config = GPT2Config(vocab_size=8, n_embd=8, n_layer=layers, n_head=2, bos_token_id=0)
    config.eos_token_id = 0
    return AutoModelForCausalLM.from_config(config)


def llama(layers: int) -> Any:
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=layers,
            num_attention_heads=2,
        )
    )


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


def test_all_linear_means_every_linear_layer_but_the_head(model: Any) -> None:
    assert choose_targets(model, ("all-linear",)) == LINEAR
    layers = linear_layers(model)
    assert len(layers) == 2 * len(LINEAR)
    assert "lm_head" not in layers
    assert choose_targets(gpt2(), ("all-linear",)) == ["c_attn", "c_fc", "c_proj"]


def test_names_match_at_a_dot(model: Any) -> None:
    assert choose_targets(model, ("q_proj", "v_proj", "q_proj")) == ["q_proj", "v_proj"]
    assert choose_targets(model, ("self_attn.q_proj",)) == ["self_attn.q_proj"]
    whole = "model.layers.1.mlp.up_proj"
    assert choose_targets(model, (whole,)) == [whole]
    with pytest.raises(RecipeError):
        choose_targets(model, ("proj",))


def test_every_name_that_means_nothing_is_told_at_once(model: Any) -> None:
    with pytest.raises(RecipeError, match="the base has no such layers") as refusal:
        choose_targets(model, ("q_porj", "v_proj", "lm_head", "c_attn", "embed_tokens"))
    assert refusal.value.exit_code == 2
    assert refusal.value.problems == (
        "adapter.targets: `q_porj` matches nothing; did you mean `q_proj`?",
        "adapter.targets: `lm_head` matches nothing; no layer is called that",
        "adapter.targets: `c_attn` matches nothing; no layer is called that",
        "adapter.targets: `embed_tokens` matches nothing; no layer is called that",
    )
    assert refusal.value.hint == f"this base has: all-linear, {', '.join(LINEAR)}"


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_blocks_are_counted_in_every_family(layers: int) -> None:
    neox = AutoModelForCausalLM.from_config(
        GPTNeoXConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=layers,
            num_attention_heads=2,
        )
    )
    for built in (gpt2(layers), llama(layers), neox):
        assert count_blocks(built) == layers
        upper = choose_blocks(built, "upper-half")
        assert upper == list(range(layers // 2, layers))
        assert choose_blocks(built, "all") is None


@given(wanted=some.lists(some.integers(0, 1), min_size=1))
def test_listed_blocks_are_taken_once_and_in_order(wanted: list[int], model: Any) -> None:
    assert choose_blocks(model, wanted) == sorted(set(wanted))


@pytest.mark.parametrize("wanted", [[2], [0, 1, 7]])
def test_a_block_that_is_not_there_is_told(wanted: list[int], model: Any) -> None:
    with pytest.raises(RecipeError) as refusal:
        choose_blocks(model, wanted)
    assert refusal.value.message == (
        f"adapter.layers: there is no block {wanted[-1]}; the base has 2, counted from 0 to 1"
    )


def test_an_empty_list_of_blocks_is_told(model: Any) -> None:
    """peft would put the adapter on every block."""
    with pytest.raises(RecipeError, match=r"adapter\.layers: the list is empty"):
        choose_blocks(model, [])
