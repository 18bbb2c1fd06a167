"""What a run needs in memory and on disk, estimated from the shape of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WIDTHS_A_LAYER = 19
"""Hidden-size vectors a layer keeps for backward, per token: measured on a Llama of 30 layers."""
LOGIT_COPIES = 3
"""Logits, their float32 copy and their gradient, alive at once."""
CPU_SHARE, GPU_SHARE = 0.25, 0.6
"""Share of the memory that activations may take; a machine's memory is shared, a GPU's is not."""
CPU_RUNTIME = 450 * 2**20
"""What Python, torch, transformers and peft hold on a CPU before any model is there: measured."""
CPU_TOKENS = 1024
"""Tokens a forward pass beyond which a CPU gains nothing."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model that memory depends on."""

    layers: int
    hidden: int
    vocabulary: int
    parameters: int


def shape_of_config(config: Any, parameters: int) -> Shape:
    """The sizes in a transformers config, whatever the family calls them."""
    text = config.get_text_config()
    return Shape(
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        parameters=parameters,
    )


def activation_bytes(shape: Shape, tokens: int, bytes_a_number: int) -> int:
    """Memory a forward pass over `tokens` keeps until its backward pass."""
    hidden = shape.layers * WIDTHS_A_LAYER * shape.hidden * bytes_a_number
    return tokens * (hidden + LOGIT_COPIES * 4 * shape.vocabulary)


def training_bytes(shape: Shape, trainable: int, tokens: int, bytes_a_number: int) -> int:
    """Peak memory of a step beside the runtime: weights, gradients, two moments, activations."""
    adapter = trainable * (4 + 4 + 8)
    activations = activation_bytes(shape, tokens, bytes_a_number)
    return shape.parameters * bytes_a_number + adapter + activations


def evaluation_bytes(shape: Shape, tokens: int, bytes_a_number: int) -> int:
    """Peak memory of a forward pass without backward."""
    logits = tokens * LOGIT_COPIES * 4 * shape.vocabulary
    hidden = tokens * WIDTHS_A_LAYER * shape.hidden * bytes_a_number
    return shape.parameters * bytes_a_number + logits + hidden


def choose_micro_rows(
    shape: Shape, *, rows: int, width: int, memory: int, on_gpu: bool, bytes_a_number: int
) -> int:
    """Rows a forward pass that fit beside the weights, at least one and at most `rows`."""
    share = GPU_SHARE if on_gpu else CPU_SHARE
    room = share * memory - shape.parameters * bytes_a_number
    fitting = int(room // max(activation_bytes(shape, width, bytes_a_number), 1))
    if not on_gpu:
        fitting = min(fitting, CPU_TOKENS // max(width, 1))
    return max(1, min(rows, fitting))
