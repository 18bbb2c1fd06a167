"""What a run needs in memory and on disk, estimated from the shape of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

WIDTHS_A_LAYER = 19
"""Hidden-size vectors a layer keeps for backward, per token: measured on a Llama of 30 layers."""
LOGIT_COPIES = 3
"""Logits, their float32 copy and their gradient, alive at once."""
CPU_SHARE, GPU_SHARE = 0.25, 0.6
"""Share of the memory that activations may take; a machine's memory is shared, a GPU's is not."""
CPU_RUNTIME = 450 * 2**20
"""What Python, torch, transformers and peft hold on a CPU before any model is there: measured."""
CHUNK_ROWS = 4096
"""Tokens whose logits are held at once where the loss goes through the frozen head in chunks."""
CPU_TOKENS = 1024
"""Tokens a forward pass beyond which a CPU gains nothing."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model that memory depends on."""

    layers: int
    hidden: int
    vocabulary: int
    parameters: int
    packed: int = 0
    """Parameters that are kept in fewer bytes than the others."""
    packed_bytes: float = 0.0
    """What each of these takes."""

    def weight_bytes(self, bytes_a_number: int) -> int:
        """What the weights take where those that are not packed have so many bytes."""
        plain = (self.parameters - self.packed) * bytes_a_number
        return plain + round(self.packed * self.packed_bytes)


def shape_of_config(config: Any, parameters: int) -> Shape:
    """The sizes in a transformers config, whatever the family calls them."""
    text = config.get_text_config()
    return Shape(
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        parameters=parameters,
    )


@dataclass(frozen=True, slots=True)
class Load:
    """What a training step keeps for its backward pass, beside its tokens."""

    blocks: int
    """Blocks from the first adapted one up; below it nothing is kept."""
    recomputed: int = 0
    """Of these, how many keep only what enters them and run again."""
    logits: bool = False
    """Whether all logits are held, or only those of a chunk."""


def activation_bytes(shape: Shape, tokens: int, bytes_a_number: int, load: Load) -> int:
    """Memory a forward pass over `tokens` keeps until its backward pass."""
    kept = WIDTHS_A_LAYER * (load.blocks - load.recomputed) + load.recomputed
    kept += WIDTHS_A_LAYER * bool(load.recomputed)  # the one that runs again just now
    rows = tokens if load.logits else min(tokens, CHUNK_ROWS)
    return (
        tokens * kept * shape.hidden * bytes_a_number + rows * LOGIT_COPIES * 4 * shape.vocabulary
    )


def training_bytes(
    shape: Shape, trainable: int, tokens: int, bytes_a_number: int, load: Load
) -> int:
    """Peak memory of a step beside the runtime: weights, gradients, two moments, activations."""
    adapter = trainable * (4 + 4 + 8)
    activations = activation_bytes(shape, tokens, bytes_a_number, load)
    return shape.weight_bytes(bytes_a_number) + adapter + activations


def evaluation_bytes(shape: Shape, tokens: int, bytes_a_number: int) -> int:
    """Peak memory of a forward pass without backward."""
    logits = tokens * LOGIT_COPIES * 4 * shape.vocabulary
    hidden = tokens * WIDTHS_A_LAYER * shape.hidden * bytes_a_number
    return shape.weight_bytes(bytes_a_number) + logits + hidden


def choose_micro_batch(  # noqa: PLR0913 - what memory depends on, and nothing besides
    shape: Shape,
    load: Load,
    *,
    rows: int | None,
    most_rows: int,
    width: int,
    memory: int,
    on_gpu: bool,
    bytes_a_number: int,
    may_recompute: bool = True,
) -> tuple[int, int]:
    """Rows of a forward pass that fit beside the weights, and blocks to recompute so that they do.

    Rows are given up first, because they cost nothing on a device that one row keeps busy; blocks
    run again only where one row does not fit, and no more of them than it takes.

    Args:
        shape: of the base.
        load: with nothing recomputed.
        rows: where the recipe says how many; None to choose them.
        most_rows: of an update.
        width: tokens of the longest row.
        memory: of the device, in bytes.
        on_gpu: whether that is a GPU, whose memory nobody else uses.
        bytes_a_number: of a weight.
        may_recompute: whether blocks may run again at all.
    """
    room = (GPU_SHARE if on_gpu else CPU_SHARE) * memory - shape.weight_bytes(bytes_a_number)

    def fits(count: int, recomputed: int) -> bool:
        kept = replace(load, recomputed=recomputed)
        return activation_bytes(shape, count * width, bytes_a_number, kept) <= room

    count = rows
    if count is None:
        most = most_rows if on_gpu else min(most_rows, CPU_TOKENS // max(width, 1))
        count = next((c for c in range(max(most, 1), 1, -1) if fits(c, 0)), 1)
    enough = (number for number in range(load.blocks + 1) if fits(count, number))
    return count, next(enough, load.blocks) if may_recompute else 0
