"""Estimates of memory grow with what they are made of, and a micro-batch fits into what is left."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from transformers import AutoConfig, GPT2Config

from peftkit.base.memory import (
    CPU_TOKENS,
    GPU_SHARE,
    Load,
    Shape,
    activation_bytes,
    choose_micro_batch,
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
    load = Load(shape.layers, logits=True)
    total = training_bytes(shape, trainable, tokens, size, load)
    activations = activation_bytes(shape, tokens, size, load)
    assert total == shape.parameters * size + 16 * trainable + activations
    assert activation_bytes(shape, 2 * tokens, size, load) == 2 * activations
    assert training_bytes(shape, 0, tokens, size, load) >= evaluation_bytes(shape, tokens, size)


@given(shape=shapes, tokens=few)
def test_what_is_not_kept_takes_nothing(shape: Shape, tokens: int) -> None:
    """Each technique can only lower what a step keeps."""
    plain = Load(shape.layers, logits=True)
    most = activation_bytes(shape, tokens, 2, plain)
    for lighter in (
        replace(plain, logits=False),
        replace(plain, blocks=shape.layers // 2),
        replace(plain, recomputed=shape.layers),
    ):
        extra = 20 * tokens * shape.hidden * 2 if lighter.recomputed else 0  # the one at work
        assert activation_bytes(shape, tokens, 2, lighter) <= most + extra
    kept = [
        activation_bytes(shape, tokens, 2, replace(plain, recomputed=n))
        for n in range(1, shape.layers + 1)
    ]
    assert kept == sorted(kept, reverse=True)


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
    load = Load(shape.layers, logits=True)

    def choose(memory: int) -> tuple[int, int]:
        return choose_micro_batch(
            shape,
            load,
            rows=None,
            most_rows=rows,
            width=width,
            memory=memory,
            on_gpu=on_gpu,
            bytes_a_number=4,
        )

    chosen, recomputed = choose(memory)
    assert 1 <= chosen <= rows
    assert chosen <= choose(2 * memory)[0]
    assert recomputed >= choose(2 * memory)[1]
    if chosen > 1:
        activations = activation_bytes(shape, chosen * width, 4, load)
        assert shape.parameters * 4 + activations <= GPU_SHARE * memory
        assert on_gpu or chosen * width <= CPU_TOKENS
        assert recomputed == 0


@pytest.mark.parametrize(("on_gpu", "rows"), [(True, 16), (False, 4)])
def test_plenty_of_memory_is_used_where_it_helps(*, on_gpu: bool, rows: int) -> None:
    shape = Shape(layers=2, hidden=32, vocabulary=262, parameters=30_000)
    chosen = choose_micro_batch(
        shape,
        Load(2),
        rows=None,
        most_rows=16,
        width=256,
        memory=2**40,
        on_gpu=on_gpu,
        bytes_a_number=4,
    )
    assert chosen == (rows, 0)


def test_as_few_blocks_run_again_as_memory_demands() -> None:
    shape = Shape(layers=10, hidden=1024, vocabulary=1000, parameters=10**6)
    load, width = Load(10), 4096
    found = []
    for share in (1.0, 0.9, 0.6, 0.3, 0.01):
        room = share * activation_bytes(shape, width, 2, load)
        memory = int((room + 2 * shape.parameters) / GPU_SHARE) + 1
        rows, recomputed = choose_micro_batch(
            shape,
            load,
            rows=1,
            most_rows=1,
            width=width,
            memory=memory,
            on_gpu=True,
            bytes_a_number=2,
        )
        assert rows == 1
        found.append(recomputed)
    assert found[0] == 0
    assert found == sorted(found)
    assert 0 < found[1] < found[2] < found[3]
    assert found[4] == 10
    forbidden = choose_micro_batch(
        shape,
        load,
        rows=1,
        most_rows=1,
        width=width,
        memory=0,
        on_gpu=True,
        bytes_a_number=2,
        may_recompute=False,
    )
    assert forbidden == (1, 0)
