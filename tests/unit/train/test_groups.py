"""Each parameter learns at the product of what its block, its head and its patterns say."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from peftkit.adapters.attach import attach, trainable
from peftkit.base.places import Place, place_parameters
from peftkit.errors import RecipeError
from peftkit.fast.refusals import unwrap
from peftkit.recipe.sections.adapter import FullSection, LoraSection, PrefixSection
from peftkit.recipe.sections.train import TrainSection
from peftkit.train.groups import (
    Group,
    Learning,
    decay_of,
    describe_groups,
    find_factors,
    show_groups,
)
from peftkit.train.optimizer import is_vector, make_optimizer, set_rate

BLOCKS = 4


def llama(*, tied: bool = False) -> Any:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def bert() -> Any:
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def t5() -> Any:
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return T5ForConditionalGeneration(config)


def adapted(model: Any, section: Any) -> Any:
    model.requires_grad_(requires_grad=False)
    return attach(model, section, seed=0)


def pace(**values: Any) -> TrainSection:
    return TrainSection.model_validate(values)


def rates(model: Any, section: Any, train: TrainSection) -> dict[str, float]:
    """The learning rate that the optimizer really has for each parameter, at a step of 1."""
    parameters = trainable(model)
    optimizer = make_optimizer(
        parameters, weight_decay=0.0, flat=False, factors=find_factors(model, section, train)
    )
    set_rate(optimizer, 1.0)
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(parameter)] for name, parameter in parameters.items()}


@pytest.mark.parametrize("ratio", [0.5, 1 / 2.6, 0.95])
def test_a_block_learns_at_the_ratio_to_the_power_of_its_depth(ratio: float) -> None:
    """Howard and Ruder's formula, and the embeddings below the lowest block."""
    model = adapted(llama(), FullSection(method="full"))
    found = rates(model, FullSection(method="full"), pace(layer_decay=ratio))
    seen = set()
    for name, rate in found.items():
        if "layers." in name:
            block = int(name.split("layers.")[1].split(".")[0])
            assert rate == pytest.approx(ratio ** (BLOCKS - 1 - block)), name
            seen.add(block)
    assert seen == set(range(BLOCKS))
    assert found["model.embed_tokens.weight"] == pytest.approx(ratio**BLOCKS)
    assert found["model.norm.weight"] == found["lm_head.weight"] == 1


@given(level=some.integers(-1, 12), ratio=some.floats(0.01, 1))
def test_each_block_learns_at_its_share_of_the_one_above(level: int, ratio: float) -> None:
    own, above = (decay_of(Place("any", each), 11, ratio) for each in (level, level + 1))
    assert own == pytest.approx(above * (ratio if level < 11 else 1))


def test_factors_multiply() -> None:
    section = LoraSection(rank=2, b_learning_rate_ratio=16.0)
    train = pace(layer_decay=0.5, groups=[{"match": "*.mlp.*", "times": 0.1}])
    found = rates(adapted(llama(), section), section, train)
    up = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.default.weight"
    query = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.default.weight"
    assert found[up.format("B")] == pytest.approx(0.25 * 0.1 * 16)
    assert found[up.format("A")] == pytest.approx(0.25 * 0.1)
    assert found[query.format("B")] == pytest.approx(0.25 * 16)


def test_the_first_pattern_that_fits_counts() -> None:
    section = LoraSection(rank=2)
    first, then = {"match": "*layers.0.*", "times": 3.0}, {"match": "*", "times": 5.0}
    found = rates(adapted(llama(), section), section, pace(groups=[first, then]))
    assert {rate for name, rate in found.items() if "layers.0." in name} == {3.0}
    assert {rate for name, rate in found.items() if "layers.0." not in name} == {5.0}


def test_a_head_learns_faster_and_its_pooler_with_it() -> None:
    section = LoraSection(rank=2)
    found = rates(adapted(bert(), section), section, pace(head_rate=10.0, layer_decay=0.5))
    heads = {name for name, rate in found.items() if rate == 10}
    assert heads == {name for name in found if "classifier" in name or "pooler" in name}
    assert {rate for name, rate in found.items() if "layer.0." in name} == {0.5}


def test_a_tied_head_is_embeddings() -> None:
    model = adapted(llama(tied=True), FullSection(method="full"))
    found = rates(model, FullSection(method="full"), pace(layer_decay=0.5))
    assert found["model.embed_tokens.weight"] == 0.5**BLOCKS
    assert "lm_head.weight" not in found


def test_nothing_said_is_no_factor() -> None:
    section = LoraSection(rank=2)
    assert set(find_factors(adapted(llama(), section), section, pace()).values()) == {1.0}


@pytest.mark.parametrize(
    ("model", "section", "train", "words"),
    [
        (t5, LoraSection(rank=2), {"layer_decay": 0.5}, "2 stacks of blocks"),
        (llama, PrefixSection(method="prefix"), {"layer_decay": 0.5}, "before the text"),
        (llama, LoraSection(rank=2), {"head_rate": 2.0}, "no head trains"),
        (
            llama,
            LoraSection(rank=2),
            {"groups": [{"match": "*.mpl.*", "times": 2.0}]},
            "`*.mpl.*` fits no parameter",
        ),
    ],
)
def test_what_cannot_be_is_said(model: Any, section: Any, train: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_factors(adapted(model(), section), section, pace(**train))
    assert words in str(caught.value)
    assert caught.value.hint


def table(train: TrainSection, begins: list[int | str], turns: dict[str, int]) -> list[Group]:
    section = LoraSection(rank=2, layers=(2, 3))
    model = adapted(llama(), section)
    parameters = trainable(model)
    learning = Learning(
        {name: (p.numel(), is_vector(p)) for name, p in parameters.items()},
        place_parameters(model, unwrap(model)),
        find_factors(model, section, train),
        turns,
    )
    return list(describe_groups(learning, train, begins))


def test_the_table_names_every_parameter_once_from_the_top_down() -> None:
    train = pace(layer_decay=0.5, learning_rate=1e-3, weight_decay=0.1)
    found = table(train, [1], {})
    assert [group.name for group in found] == ["block 3", "block 2"]
    assert [group.learning_rate for group in found] == [1e-3, 5e-4]
    assert {group.weight_decay for group in found} == {0.1}
    section = LoraSection(rank=2, layers=(2, 3))
    every = sum(p.numel() for p in trainable(adapted(llama(), section)).values())
    assert sum(group.parameters for group in found) == every
    lines = list(show_groups(found))
    assert len(lines) == 3
    assert "block 2" in lines[2]
    assert "0.0005" in lines[2]


def test_a_table_of_one_pace_is_not_shown() -> None:
    assert not list(show_groups(table(pace(), [1], {})))
