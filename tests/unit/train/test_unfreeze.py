"""Blocks begin to learn from the top down, and until then not one bit of them moves."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from peftkit.adapters.attach import attach, trainable
from peftkit.base.places import place_parameters
from peftkit.data.batch import Layout, Update, stream_updates
from peftkit.data.example import Example
from peftkit.errors import RecipeError
from peftkit.fast.lora import enable as lora_on
from peftkit.fast.refusals import unwrap
from peftkit.recipe.sections.adapter import FullSection, LoraSection, PrefixSection, TopSection
from peftkit.train.loop import train
from peftkit.train.optimizer import freeze, make_optimizer, read_moments, thaw
from peftkit.train.unfreeze import (
    Known,
    decide,
    depth_by_epoch,
    find_turns,
    first_steps,
    name_turns,
    recall,
)

FULL, LORA = FullSection(method="full"), LoraSection(rank=2)


def a_model(section: Any, kind: Any = LlamaForCausalLM) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    model = kind(config)
    model.requires_grad_(requires_grad=False)
    return attach(model, section, seed=0)


def updates(start: int = 0) -> Iterator[Update]:
    every = np.ones(12, bool)
    tokens = [(np.arange(12) + first) % 16 for first in range(16)]
    rows = [Example(each, every, "", str(number), "") for number, each in enumerate(tokens)]
    layout = Layout(packing=False, micro_rows=8, pad_id=0)
    return stream_updates(rows, layout, rows=8, seed=0, start=start)


def names(model: Any) -> list[str]:
    return name_turns(place_parameters(model, unwrap(model)), find_turns(model))


@pytest.mark.parametrize(
    ("section", "kind", "wanted"),
    [
        (LORA, LlamaForCausalLM, ["block 2", "block 1", "block 0"]),
        (
            FULL,
            LlamaForCausalLM,
            ["head and norm above", "block 2", "block 1", "block 0", "embeddings"],
        ),
        (TopSection(method="top"), LlamaForCausalLM, ["block 2 and norm above", "block 1"]),
        (LORA, LlamaForSequenceClassification, ["head", "block 2", "block 1", "block 0"]),
        (LoraSection(rank=2, layers=(0, 2)), LlamaForCausalLM, ["block 2", "block 0"]),
    ],
)
def test_turns_go_from_the_top_down(section: Any, kind: Any, wanted: list[str]) -> None:
    assert names(a_model(section, kind)) == wanted


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (PrefixSection(method="prefix"), "before the text"),
        (LoraSection(rank=2, layers=(1,)), "all that trains is in one place"),
    ],
)
def test_what_has_no_turns_is_refused(section: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_turns(a_model(section))
    assert words in str(caught.value)


@pytest.mark.parametrize("section", [LORA, FULL])
@pytest.mark.parametrize("flat", [True, False])
def test_no_bit_of_a_block_moves_before_its_turn(section: Any, *, flat: bool) -> None:
    """Nor is a gradient computed for it, nor does weight decay reach it, nor is it remembered."""
    model = a_model(section)
    lora_on(model)
    parameters, turns = trainable(model), find_turns(model)
    optimizer = make_optimizer(parameters, weight_decay=0.3, flat=flat, turns=turns)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    for depth in range(1, max(turns.values()) + 2):
        learning = {name for name, turn in turns.items() if turn < depth}
        freeze(optimizer, [p for name, p in parameters.items() if name not in learning])
        thaw(optimizer, [p for name, p in parameters.items() if name in learning])
        steps = train(
            model,
            updates(depth),
            optimizer,
            lambda _: 0.01,
            steps=range(2 * depth, 2 * depth + 2),
            max_grad_norm=1.0,
            seed=0,
        )
        assert len(list(steps)) == 2
        moved = {n for n, p in parameters.items() if not torch.equal(p, start[n])}
        assert moved == learning
        remembered = read_moments(optimizer, parameters)
        assert {key.rpartition(":")[0] for key in remembered} == learning
        for name, turn in turns.items():
            if name in learning:
                assert remembered[f"{name}:step"] == 2 * (depth - turn)
            else:
                assert parameters[name].grad is None


def test_the_backward_pass_ends_at_the_lowest_block_that_learns() -> None:
    model = a_model(FULL)
    parameters, turns = trainable(model), find_turns(model)
    optimizer = make_optimizer(parameters, weight_decay=0.0, turns=turns)
    freeze(optimizer, [p for name, p in parameters.items() if turns[name] >= 2])
    outputs = []
    blocks = unwrap(model).model.layers
    for block in blocks:
        block.register_forward_hook(lambda _, __, found: outputs.append(found))
    model(torch.arange(8)[None])
    assert [states.requires_grad for states in outputs] == [False, False, True]


@pytest.mark.parametrize("flat", [True, False])
def test_with_nothing_frozen_turns_change_no_bit(*, flat: bool) -> None:
    ends = []
    for grouped in (False, True):
        model = a_model(LORA)
        parameters = trainable(model)
        turns = find_turns(model) if grouped else {}
        optimizer = make_optimizer(parameters, weight_decay=0.1, flat=flat, turns=turns)
        steps = train(
            model,
            updates(),
            optimizer,
            lambda _: 0.01,
            steps=range(1, 6),
            max_grad_norm=1e9,  # the norm of other groups may differ in its last digit
            seed=0,
        )
        losses = [step.loss for step in steps]
        ends.append((losses, {name: p.detach().clone() for name, p in parameters.items()}))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(ends[0][1][name], ends[1][1][name]) for name in ends[0][1])


@given(rows=some.integers(1, 40), an_epoch=some.integers(1, 500), turns=some.integers(2, 12))
def test_by_epoch_each_turn_begins_where_the_table_says(
    rows: int, an_epoch: int, turns: int
) -> None:
    begin = first_steps(turns, rows=rows, an_epoch=an_epoch)
    assert begin[0] == 1
    for turn, step in enumerate(begin):
        assert depth_by_epoch(step - 1, rows=rows, an_epoch=an_epoch, turns=turns) > turn
        if step > 1:
            assert depth_by_epoch(step - 2, rows=rows, an_epoch=an_epoch, turns=turns) <= turn


def follow(losses: list[float], *, patience: int = 1, turns: int = 3) -> tuple[Known, list[str]]:
    """What is known after these evaluations, ten steps apart, and what each decided."""
    known, said = Known(), []
    for number, loss in enumerate(losses, 1):
        known, decision = decide(
            known,
            10 * number,
            loss,
            names=["a", "b", "c"][:turns],
            patience=patience,
            again=True,
        )
        said.append(decision)
    return known, said


def test_a_plateau_thaws_the_next_and_a_worse_one_is_taken_back() -> None:
    known, said = follow([3.0, 2.5, 2.6, 2.4, 2.4, 2.7, 2.0, 2.1, 2.2])
    assert said == ["go on", "go on", "thaw", "go on", "thaw", "roll back", *["go on"] * 3]
    assert known.settled
    assert known.depth == 2
    shown = [(each.depth, each.name, each.step, each.loss, each.kept) for each in known.curve]
    assert shown == [(1, "a", 0, 2.5, True), (3, "c", 50, 2.7, False), (2, "b", 30, 2.0, True)]


def test_patience_waits_and_a_better_one_starts_it_over() -> None:
    assert follow([3.0, 3.1, 2.9, 3.0, 3.0], patience=2)[1] == ["go on"] * 4 + ["thaw"]


def test_nothing_is_thawed_that_no_evaluation_could_judge() -> None:
    known, decision = decide(Known(best=1.0), 10, 2.0, names=["a", "b"], patience=1, again=False)
    assert decision == "go on"
    assert known.depth == 1


@given(losses=some.lists(some.floats(0.1, 10), min_size=1, max_size=25))
def test_what_is_known_survives_a_checkpoint(losses: list[float]) -> None:
    known, _ = follow(losses)
    import json

    assert recall(json.loads(json.dumps(known.facts))) == known
    assert recall(None) == Known()


@given(losses=some.lists(some.floats(0.1, 10), min_size=1, max_size=25))
def test_a_kept_thaw_never_measured_worse_than_what_it_came_from(losses: list[float]) -> None:
    known, said = follow(losses)
    assert 1 <= known.depth <= 3
    assert said.count("roll back") <= 1
    assert known.depth == 1 + said.count("thaw") - said.count("roll back")
    for number, decision in enumerate(said[:-1]):
        if decision == "thaw":
            worse = losses[number + 1] > losses[number]
            assert (said[number + 1] == "roll back") == worse
