"""Answers are greedy, the same in any batch, and known to have stopped or not."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

from peftkit.adapters.attach import attach, trainable
from peftkit.data.example import Example
from peftkit.evaluate.generation import (
    SPARE_TOKENS,
    Answer,
    answer_all,
    is_repetitive,
    prompt_of,
    room_for,
)
from peftkit.recipe.sections.adapter import LoraSection

STOPS = frozenset({2})
PROMPTS = [[1, 70, 80], [1, 50, 60, 70, 90, 100, 110], [1], [1, 200, 30, 40], [1, 70, 81]]
SMALL: dict[str, Any] = {"vocab_size": 262, "bos_token_id": 1, "eos_token_id": 2}


def sharpened(config: Any) -> Any:
    """A model of random weights, large enough for one token to be clearly the best."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model


def gpt2(positions: int = 64) -> Any:
    return sharpened(GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=positions))


def mistral() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
    return sharpened(MistralConfig(**SMALL, **sizes, **heads, max_position_embeddings=64))


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], stops: frozenset[int], room: int) -> list[int]:
    """The most likely token, one after the other, without a cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + room:
        token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def expected(model: Any, prompt: list[int], tokenizer: Any, stops: frozenset[int]) -> Answer:
    ids = greedy(model, prompt, stops, 12)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Answer(text, len(ids), len(ids) < 12)


def stopping(model: Any) -> frozenset[int]:
    """Stop ids at which some of the answers end early and some do not."""
    third = greedy(model, PROMPTS[0], frozenset(), 12)[3]
    ends = [third in greedy(model, prompt, frozenset(), 12) for prompt in PROMPTS]
    assert any(ends)
    return STOPS | {third}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_answers_are_those_of_a_plain_greedy_loop(family: str, model: Any, tokenizer: Any) -> None:
    asked = {"llama": lambda: model, "gpt2": gpt2, "mistral": mistral}[family]()
    for stops in (STOPS, stopping(asked)):
        answers = answer_all(asked, PROMPTS, tokenizer, stops=stops, room=12)
        assert answers == [expected(asked, prompt, tokenizer, stops) for prompt in PROMPTS]
    assert any(answer.stopped for answer in answers)


def test_no_batching_changes_an_answer(model: Any, tokenizer: Any) -> None:
    stops = stopping(model)
    together = answer_all(model, PROMPTS, tokenizer, stops=stops, room=12)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert answer_all(model, [prompt], tokenizer, stops=stops, room=12) == [answer]
    for order in list(permutations(range(len(PROMPTS))))[::17]:
        asked = [PROMPTS[index] for index in order]
        answers = answer_all(model, asked, tokenizer, stops=stops, room=12)
        assert answers == [together[index] for index in order]
    filled = [*PROMPTS, *[[1, 9] * 40 for _ in range(200)]]  # more than a batch
    answers = answer_all(model, filled, tokenizer, stops=stops, room=12)
    assert answers[: len(PROMPTS)] == together


def test_any_of_several_stops_ends_an_answer(model: Any, tokenizer: Any) -> None:
    first, second = greedy(model, PROMPTS[1], frozenset(), 12)[:2]
    for stops, tokens in (({first, second}, 0), ({second}, 1), (set(), 12)):
        (answer,) = answer_all(model, [PROMPTS[1]], tokenizer, stops=frozenset(stops), room=12)
        assert (answer.tokens, answer.stopped) == (tokens, tokens < 12)


@pytest.mark.parametrize(
    ("habit", "value"),
    [
        ("repetition_penalty", 0.01),
        ("no_repeat_ngram_size", 1),
        ("num_beams", 3),
        ("suppress_tokens", list(range(200))),
        ("forced_eos_token_id", 7),
        ("max_length", 5),
        ("temperature", 0.1),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_habits_of_the_base_have_no_say(
    habit: str, value: Any, *, wrapped: bool, tiny_llama: Path, tokenizer: Any
) -> None:
    """Instruction-tuned bases come with a repetition penalty, which is not what is measured."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    plain = answer_all(model, PROMPTS, tokenizer, stops=STOPS, room=12)
    setattr(model.generation_config, habit, value)
    own = model.generation_config
    asked = attach(model, LoraSection(rank=2), seed=0) if wrapped else model
    assert answer_all(asked, PROMPTS, tokenizer, stops=STOPS, room=12) == plain
    assert model.generation_config is own
    assert getattr(own, habit) == value


def test_an_adapter_answers_for_itself(model: Any, tokenizer: Any, tiny_llama: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    base.load_state_dict(model.state_dict())
    adapted = attach(base.requires_grad_(requires_grad=False), LoraSection(rank=4), seed=0)
    with torch.no_grad():
        for parameter in trainable(adapted).values():
            parameter.add_(0.3)
    answers = answer_all(adapted, PROMPTS, tokenizer, stops=STOPS, room=12)
    assert answers == [expected(adapted, prompt, tokenizer, STOPS) for prompt in PROMPTS]
    assert answers != [expected(model, prompt, tokenizer, STOPS) for prompt in PROMPTS]


@pytest.mark.parametrize(("length", "room"), [(10, 6), (15, 1), (16, 1)])
def test_an_answer_ends_where_the_positions_of_the_base_do(
    length: int, room: int, tokenizer: Any
) -> None:
    """GPT-2 has no position after its last; asking for one is an error deep in torch."""
    prompts = [[9] * length, [9]]
    answers = answer_all(gpt2(16), prompts, tokenizer, stops=frozenset(), room=12)
    assert [answer.tokens for answer in answers] == [room, room]


def test_nothing_asked_is_nothing_answered(model: Any, tokenizer: Any) -> None:
    assert answer_all(model, [], tokenizer, stops=STOPS, room=4) == []


def test_measuring_switches_dropout_off(model: Any, tokenizer: Any) -> None:
    model.train()
    answer_all(model, PROMPTS[:1], tokenizer, stops=STOPS, room=1)
    assert not model.training


def test_room_is_the_longest_answer_and_some_to_spare() -> None:
    def example(length: int, prompt: int) -> Example:
        return Example(np.arange(length), np.ones(length, np.bool_), "f:1", "d", "", prompt)

    assert room_for([example(10, 7), example(20, 9), example(30, 29)]) == 11 + SPARE_TOKENS
    assert prompt_of(example(10, 4)) == [0, 1, 2, 3]


repeated = some.lists(some.sampled_from("abc"), min_size=1, max_size=4)


@settings(max_examples=50)
@given(start=some.lists(some.sampled_from("xyz")), words=repeated, times=some.integers(4, 9))
def test_an_answer_that_ends_in_a_loop_is_repetitive(
    start: list[str], words: list[str], times: int
) -> None:
    assert is_repetitive(" ".join(start + words * times))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no no no",
        "no no no no, thank you",
        "one two three four five six seven eight",
        "a b c d e a b c d e a b c d e a b c d e",  # five words are not few
        "very very very good indeed",
    ],
)
def test_one_that_does_not_is_not(text: str) -> None:
    assert not is_repetitive(text)
