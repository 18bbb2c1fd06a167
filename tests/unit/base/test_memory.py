"""Estimates of memory grow with what they are made of, and a micro-batch fits into what is left."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from transformers import AutoConfig, GPT2Config

from peftkit.base.memory import (
    CPU_TOKENS,
    GPU_SHARE,
    Shape,
    activation_bytes,
    choose_micro_rows,
    evaluation_bytes,
    shape_of_config,
    training_bytes,
)

shapes = some.builds(
    Shape,
    layers=some.integers(1, 40),
    hidden=some.integers(8, 4096),
    vocabulary=some.integers(100, 200_000),
    parameters=some.integers(10**4, 10**9),
)
few = some.integers(1, 10_000)


def test_sizes_are_read_whatever_a_family_calls_them(tiny_llama: Path) -> None:
    llama = shape_of_config(AutoConfig.from_pretrained(tiny_llama), 7)
    assert llama == Shape(layers=2, hidden=32, vocabulary=262, parameters=7)
    gpt2 = shape_of_config(GPT2Config(n_layer=3, n_embd=16, vocab_size=9), 7)
    assert gpt2 == Shape(layers=3, hidden=16, vocabulary=9, parameters=7)


@given(shape=shapes, tokens=few, trainable=few, size=some.sampled_from([2, 4]))
def test_training_needs_the_weights_four_numbers_a_parameter_and_activations(
    shape: Shape, tokens: int, trainable: int, size: int
) -> None:
    total = training_bytes(shape, trainable, tokens, size)
    activations = activation_bytes(shape, tokens, size)
    assert total == shape.parameters * size + 16 * trainable + activations
    assert activation_bytes(shape, 2 * tokens, size) == 2 * activations
    assert training_bytes(shape, 0, tokens, size) >= evaluation_bytes(shape, tokens, size)


@given(
    shape=shapes,
    rows=some.integers(1, 64),
    width=some.integers(1, 4096),
    memory=some.integers(0, 2**40),
    on_gpu=some.booleans(),
)
def test_a_micro_batch_is_at_least_a_row_and_fits_if_more(
    shape: Shape, rows: int, width: int, memory: int, *, on_gpu: bool
) -> None:
    def choose(memory: int) -> int:
        return choose_micro_rows(
            shape, rows=rows, width=width, memory=memory, on_gpu=on_gpu, bytes_a_number=4
        )

    chosen = choose(memory)
    assert 1 <= chosen <= rows
    assert chosen <= choose(2 * memory)
    if chosen > 1:
        activations = activation_bytes(shape, chosen * width, 4)
        assert shape.parameters * 4 + activations <= GPU_SHARE * memory
        assert on_gpu or chosen * width <= CPU_TOKENS


@pytest.mark.parametrize(("on_gpu", "rows"), [(True, 16), (False, 4)])
def test_plenty_of_memory_is_used_where_it_helps(*, on_gpu: bool, rows: int) -> None:
    shape = Shape(layers=2, hidden=32, vocabulary=262, parameters=30_000)
    chosen = choose_micro_rows(
        shape, rows=16, width=256, memory=2**40, on_gpu=on_gpu, bytes_a_number=4
    )
    assert chosen == rows
