"""The frozen-head loss equals the plain one on every kind of head, and keeps no logits.

The plain twin, transformers' own forward pass, is the oracle.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import (
    FAMILIES,
    VOCABULARY,
    adapt,
    assert_same_gradients,
    batch_of,
    build,
    found_head,
    gradients,
    small_chunks,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from peftkit.adapters.attach import trainable
from peftkit.data.batch import Batch
from peftkit.data.example import IGNORED
from peftkit.fast.chunked import Head
from peftkit.fast.head import check_head, find_head, head_loss, head_token_losses
from peftkit.fast.loss import summed_loss, token_losses
from peftkit.fast.refusals import SCALES, SOFTCAPS, forward_names
from peftkit.fast.varlen import enable

LLAMA = build()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_adapter_gradients_are_the_plain_ones(family: str) -> None:
    """Also under a factor, and over two micro-batches."""
    model = adapt(family)
    head = found_head(model)
    batches = [batch_of(seed=1), batch_of(seed=2, rows=1, time=30, density=0.3)]
    with small_chunks():
        ours = [head_loss(model, batch, head) * 0.37 for batch in batches]
    theirs = [summed_loss(model, batch) * 0.37 for batch in batches]
    for one, other in zip(ours, theirs, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
    assert_same_gradients(gradients(model, sum(ours)), gradients(model, sum(theirs)), 1e-5)
    assert head.weight.grad is None


def test_every_scale_and_cap_that_is_read_belongs_to_a_family_above() -> None:
    mentioned = set().union(*(forward_names(build(family)) for family in FAMILIES))
    assert mentioned >= SCALES | SOFTCAPS
    heads = [find_head(build(family)) for family in FAMILIES]
    assert {type(head) for head in heads} == {Head}
    assert any(head.bias is not None for head in heads if isinstance(head, Head))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_without_adapter_has_the_same_token_losses(family: str) -> None:
    model, batch = build(family), batch_of()
    head = found_head(model)
    with torch.inference_mode(), small_chunks():
        ours, theirs = head_token_losses(model, batch, head), token_losses(model, batch)
        total = head_loss(model, batch, head)
    assert ours.shape == batch.targets.shape
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert total.item() == pytest.approx(theirs.sum().item(), rel=1e-5)
    assert not ours.requires_grad


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "phi"])
def test_bfloat16_stays_within_its_rounding(family: str) -> None:
    model = adapt(family, dtype=torch.bfloat16)
    head = found_head(model)
    batch = batch_of(rows=4)
    ours, theirs = head_loss(model, batch, head), summed_loss(model, batch)
    assert head.weight.dtype == torch.bfloat16
    assert ours.item() == pytest.approx(theirs.item(), rel=2e-3)
    assert_same_gradients(gradients(model, ours), gradients(model, theirs), 3e-2)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)])
def test_eight_updates_end_at_the_plain_loss(dtype: torch.dtype, limit: float) -> None:
    """Small differences of a gradient that point one way would add up."""
    batches = [batch_of(rows=3, seed=number) for number in range(8)]

    def losses_of(loss: Callable[[Any, Batch], Tensor]) -> list[float]:
        model = adapt(dtype=dtype)
        optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
        for batch in batches:
            (loss(model, batch) / 25).backward()
            optimizer.step()
            optimizer.zero_grad()
        return [summed_loss(model, batch).item() for batch in batches]

    plain = losses_of(summed_loss)
    fast = losses_of(lambda model, batch: head_loss(model, batch, found_head(model)))
    assert fast == pytest.approx(plain, rel=limit)
    untrained = [summed_loss(adapt(dtype=dtype), batch).item() for batch in batches]
    assert sum(plain) < 0.9 * sum(untrained), "nothing was learned, so equality would mean little"


@given(st.integers(1, 3), st.integers(1, 20), st.floats(0, 1), st.integers(0, 2**32))
def test_any_batch_has_the_plain_token_losses(
    rows: int, time: int, density: float, seed: int
) -> None:
    batch = batch_of(rows=rows, time=time, density=density, seed=seed)
    with torch.no_grad():
        ours = head_token_losses(LLAMA, batch, found_head(LLAMA))
        theirs = token_losses(LLAMA, batch)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours == 0, batch.targets == IGNORED)


def test_documents_that_share_a_row_stay_apart() -> None:
    model, batch = adapt(), batch_of(rows=2, time=12)
    places = torch.tensor([[*range(5), *range(7)], [*range(9), *range(3)]])
    packed = replace(batch, positions=places)
    head = found_head(model)
    ours, theirs = head_token_losses(model, packed, head), token_losses(model, packed)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, token_losses(model, batch), rtol=1e-3)


def test_documents_of_a_flat_row_stay_apart_and_pass_the_gate() -> None:
    """Here only their lengths, which travel beside the batch and are cut with it, tell them."""
    model, batch = adapt(), batch_of(rows=1, time=90, density=0.9)
    flat = replace(batch, lengths=(30, 50, 10))
    assert enable(model) is None
    head = found_head(model)
    ours, theirs = head_token_losses(model, flat, head), token_losses(model, flat)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, token_losses(model, batch), rtol=1e-3)
    assert check_head(model, flat, head) < 1e-5


def test_dropout_falls_as_on_the_plain_path() -> None:
    model, batch = adapt(dropout=0.5).train(), batch_of()
    head = found_head(model)
    losses = []
    for loss in (summed_loss, lambda model, batch: head_loss(model, batch, head), summed_loss):
        losses.append(loss(model, batch).item())
        torch.manual_seed(7)
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_a_mean_is_over_the_trained_tokens() -> None:
    batch = batch_of(density=0.4)
    mean = head_loss(LLAMA, batch, found_head(LLAMA), reduce="mean")
    trained = (batch.targets != IGNORED).sum().item()
    assert 0 < trained < batch.targets.numel()
    assert mean.item() == pytest.approx(summed_loss(LLAMA, batch).item() / trained, rel=1e-5)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_without_a_trained_token_the_loss_is_a_zero_that_can_be_differentiated(
    reduce: Any,
) -> None:
    model, batch = adapt(), batch_of(density=0)
    loss = head_loss(model, batch, found_head(model), reduce=reduce)
    assert loss.item() == 0
    assert all(gradient.norm() == 0 for gradient in gradients(model, loss).values())


def test_one_trained_token_is_enough() -> None:
    model, batch = adapt(), batch_of(density=0)
    batch.targets[1, 5] = 9
    ours, theirs = head_loss(model, batch, found_head(model)), summed_loss(model, batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same_gradients(gradients(model, ours), gradients(model, theirs), 1e-5)


def test_the_same_batch_gives_the_same_bits() -> None:
    model, batch = adapt(dtype=torch.bfloat16), batch_of(rows=3)
    head = found_head(model)
    first, second = (gradients(model, head_loss(model, batch, head)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def largest_saved(compute: Callable[[], Tensor]) -> int:
    sizes = [0]

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        compute()
    return max(sizes)


class LargestMade(TorchDispatchMode):
    """Remembers the largest tensor that any operation gave."""

    numel = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        made = operation(*arguments, **(keywords or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return made


def largest_made(compute: Callable[[], Tensor]) -> int:
    with LargestMade() as mode:
        compute()
    return mode.numel


@pytest.mark.parametrize("measure", [largest_saved, largest_made])
def test_nothing_of_tokens_by_vocabulary_is_kept_or_made(
    measure: Callable[[Callable[[], Tensor]], int],
) -> None:
    model, batch = adapt(), batch_of(rows=4, time=40, density=1)
    head = found_head(model)
    logits = batch.targets.numel() * VOCABULARY
    assert measure(lambda: summed_loss(model, batch)) >= logits, "the measure sees nothing"
    with small_chunks(rows=20):
        assert measure(lambda: head_loss(model, batch, head)) < logits
        assert measure(lambda: head_token_losses(model, batch, head)) < logits


def test_evaluation_makes_nothing_of_tokens_by_vocabulary() -> None:
    batch = batch_of(rows=4, time=40, density=1)
    head = found_head(LLAMA)
    with torch.inference_mode(), small_chunks(rows=20):
        made = largest_made(lambda: head_token_losses(LLAMA, batch, head))
    assert 0 < made < batch.targets.numel() * VOCABULARY
