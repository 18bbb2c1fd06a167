"""Losses row by row are what a loop over tokens computes, in whatever batches they are measured."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from peftkit.data.example import Example
from peftkit.evaluate.losses import (
    BATCH_TOKENS,
    RowLosses,
    batches_by_length,
    choose_rows,
    measure_losses,
)

PAD = 0


@some.composite
def documents(draw: some.DrawFn) -> Example:
    tokens = draw(some.lists(some.integers(6, 261), min_size=2, max_size=20))
    trained = draw(some.lists(some.booleans(), min_size=len(tokens), max_size=len(tokens)))
    trained[0], trained[-1] = False, True
    return Example(np.array(tokens, np.int32), np.array(trained), "f:1", "d", "text")


def named(text: str) -> Example:
    return Example(np.array([6, 7], np.int32), np.array([False, True]), text, text, text)


def encoded(text: str, tokenizer: Any) -> Example:
    ids = np.array(tokenizer(text)["input_ids"], np.int32)
    return Example(ids, np.arange(len(ids)) > 0, "f:1", "d", text)


@torch.inference_mode()
def by_hand(model: Any, example: Example) -> float:
    """The sum of minus log probabilities, one prefix after the other."""
    total = 0.0
    for place in range(1, example.length):
        if example.trained[place]:
            prefix = torch.tensor([example.tokens[:place].tolist()])
            logits = model(prefix).logits[0, -1].double()
            total += float(logits.logsumexp(0) - logits[int(example.tokens[place])])
    return total


@settings(max_examples=20)
@given(examples=some.lists(documents(), min_size=1, max_size=5))
def test_losses_are_those_of_a_loop_over_the_tokens(
    examples: list[Example], model: Any, tokenizer: Any
) -> None:
    rows = measure_losses(model, examples, tokenizer, PAD)
    expected = [by_hand(model, example) for example in examples]
    np.testing.assert_allclose(rows.losses, expected, rtol=1e-4, atol=1e-4)
    assert rows.tokens.tolist() == [int(example.trained.sum()) for example in examples]
    assert rows.per_token == pytest.approx(sum(expected) / rows.tokens.sum(), rel=1e-4)


@settings(max_examples=20)
@given(examples=some.lists(documents(), min_size=2, max_size=8), data=some.data())
def test_neither_order_nor_company_changes_a_row(
    examples: list[Example], data: some.DataObject, model: Any, tokenizer: Any
) -> None:
    order = data.draw(some.permutations(range(len(examples))))
    together = measure_losses(model, examples, tokenizer, PAD)
    shuffled = measure_losses(model, [examples[index] for index in order], tokenizer, PAD)
    np.testing.assert_allclose(shuffled.losses, together.losses[order], rtol=1e-5, atol=1e-5)
    alone = [measure_losses(model, [example], tokenizer, PAD).losses[0] for example in examples]
    np.testing.assert_allclose(together.losses, alone, rtol=1e-5, atol=1e-5)


def test_measuring_switches_dropout_off(model: Any, tokenizer: Any) -> None:
    model.train()
    measure_losses(model, [encoded("abc", tokenizer)], tokenizer, PAD)
    assert not model.training


def test_bytes_are_those_of_the_text_that_is_learnt(model: Any, tokenizer: Any) -> None:
    example = encoded("müde 🙂", tokenizer)
    rows = measure_losses(model, [example], tokenizer, PAD)
    assert rows.bytes.tolist() == [len("müde 🙂".encode())]
    assert rows.per_byte == rows.losses.sum() / len("müde 🙂".encode())
    stop = np.array([6, tokenizer.eos_token_id], np.int32)
    nothing = Example(stop, np.array([False, True]), "f:1", "d", "")
    only_stop = measure_losses(model, [nothing], tokenizer, PAD)
    assert only_stop.bytes.tolist() == [0]
    assert math.isfinite(only_stop.per_byte)


def test_the_mean_is_over_tokens_not_over_rows() -> None:
    rows = RowLosses(np.array([1.0, 9.0]), np.array([1, 3]), np.array([2, 8]))
    assert (rows.per_token, rows.per_byte) == (2.5, 1.0)


@given(lengths=some.lists(some.integers(1, 300), max_size=60), budget=some.integers(1, 2000))
def test_batches_hold_every_row_once_and_keep_to_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = list(batches_by_length(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    widths = [lengths[index] for batch in batches for index in batch]
    assert widths == sorted(widths)


def test_rows_longer_than_a_batch_are_measured_alone() -> None:
    assert list(batches_by_length([BATCH_TOKENS + 1, 5, BATCH_TOKENS + 1], BATCH_TOKENS)) == [
        [1],
        [0],
        [2],
    ]


texts = some.lists(some.text("abcdef", min_size=1, max_size=6), min_size=1, unique=True)


@given(texts=texts, limit=some.integers(1, 12), data=some.data())
def test_the_same_rows_are_chosen_whatever_stands_around_them(
    texts: list[str], limit: int, data: some.DataObject
) -> None:
    chosen = [row.text for row in choose_rows([named(text) for text in texts], limit)]
    assert len(chosen) == min(limit, len(texts))
    assert chosen == [text for text in texts if text in chosen]
    shuffled = data.draw(some.permutations(texts))
    assert {row.text for row in choose_rows([named(t) for t in shuffled], limit)} == set(chosen)
    fewer = choose_rows([named(text) for text in texts], max(limit - 1, 1))
    assert {row.text for row in fewer} <= set(chosen)
    gone = data.draw(some.sampled_from(texts))
    left = choose_rows([named(text) for text in texts if text != gone], limit)
    assert set(chosen) - {gone} <= {row.text for row in left}


def test_copies_are_chosen_in_their_order() -> None:
    rows = [named("same") for _ in range(5)]
    assert all(one is other for one, other in zip(choose_rows(rows, 3), rows[:3], strict=True))
