"""NEFTune: noise on the embeddings of what is read, while training only.

`a / √(L d) · U(−1, 1)` on each of the `d` numbers of each of the `L` tokens of a text (Jain et al.,
2023). `L` is each text's own length, also where texts share a row, so packing changes nothing but
what is drawn; that follows from seed, step and micro-batch, as dropout does.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from peftkit.fast.refusals import unwrap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from peftkit.data.batch import Batch


@contextmanager
def noise(model: Any, batch: Batch, strength: float) -> Iterator[None]:
    """Inside, the embeddings of the batch's tokens carry noise at each pass."""
    sizes = strength * lengths_at(batch).rsqrt()

    def disturb(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if inputs[0].data_ptr() != batch.inputs.data_ptr():  # what a decoder writes, say
            return output
        drawn = torch.empty_like(output).uniform_(-1, 1)
        each = sizes[..., None] / math.sqrt(output.shape[-1])
        return output + drawn * each.to(output.dtype)

    handle = unwrap(model).get_input_embeddings().register_forward_hook(disturb)
    try:
        yield
    finally:
        handle.remove()


def lengths_at(batch: Batch) -> Tensor:
    """For each place of a batch the tokens of the text it is in, (rows, time); padding has 1."""
    if batch.mask is not None:
        return batch.mask.sum(1, keepdim=True).expand_as(batch.inputs).float()
    found = torch.ones(batch.inputs.shape)
    for row, documents in enumerate(batch.documents):
        at = 0
        for document in documents:
            found[row, at : at + document.length] = document.length
            at += document.length
    return found.to(batch.inputs.device)
