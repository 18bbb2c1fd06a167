"""Blocks that run again give the gradients they gave, and keep less for it."""

from typing import Any

import pytest
import torch
from tiny_models import adapt, assert_same_gradients, batch_of, gradients
from torch import Tensor

from peftkit.base.targets import list_blocks
from peftkit.fast import lora, varlen
from peftkit.fast.loss import summed_loss
from peftkit.fast.recompute import recompute, refuse_recompute
from peftkit.fast.refusals import unwrap


def kept_bytes(model: Any) -> int:
    total = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        summed_loss(model, batch_of())
    return total


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mistral"])
def test_gradients_are_the_same_with_dropout_too(family: str) -> None:
    model = adapt(family, dropout=0.3).train()
    assert refuse_recompute(model) is None
    assert lora.enable(model) is None
    found = []
    for count in (0, 1, 2):
        recompute(model, count)
        torch.manual_seed(7)
        found.append(gradients(model, summed_loss(model, batch_of())))
    assert_same_gradients(found[1], found[0], 1e-5)
    assert_same_gradients(found[2], found[0], 1e-5)


def test_each_block_saves_memory_and_none_costs_any() -> None:
    model = adapt().train()
    kept = []
    for count in (0, 1, 2):
        recompute(model, count)
        kept.append(kept_bytes(model))
    assert kept[0] > 1.3 * kept[1] > 1.3 * kept[2]
    recompute(model, 0)
    assert kept_bytes(model) == kept[0]


def test_flat_rows_find_their_documents_again() -> None:
    model = adapt().train()
    assert varlen.enable(model) is None
    batch = batch_of(rows=1, time=17)
    flat = type(batch)(batch.inputs, batch.targets, torch.arange(17)[None] % 10, 17, (10, 7))
    wanted = gradients(model, summed_loss(model, flat))
    recompute(model, 2)
    assert_same_gradients(gradients(model, summed_loss(model, flat)), wanted, 1e-5)


def test_blocks_that_cannot_say_so() -> None:
    model = adapt()
    blocks = unwrap(model).model.layers
    blocks[0] = torch.nn.Sequential(blocks[0])
    assert len(list_blocks(unwrap(model))) == 2
    assert "cannot run again" in str(refuse_recompute(model))
