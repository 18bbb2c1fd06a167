"""Losses through a frozen head, without a model: float64 is the oracle, whatever the chunks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import small_chunks
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from peftkit.fast.chunked import GPU_LOGITS, Head, choose_rows, project_losses


def reference(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return cross_entropy(logits, targets, reduction="none")


def in_double(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.double()
    return replace(head, weight=head.weight.double(), bias=bias)


@given(
    count=st.integers(0, 40),
    vocabulary=st.integers(2, 60),
    width=st.integers(1, 9),
    chunks=st.tuples(st.integers(1, 50), st.integers(1, 400)),
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    softcap=st.sampled_from([None, 0.5, 30.0]),
    seed=st.integers(0, 2**32),
)
def test_losses_and_gradient_are_those_of_float64(
    *,
    count: int,
    vocabulary: int,
    width: int,
    chunks: tuple[int, int],
    biased: bool,
    scale: float,
    softcap: float | None,
    seed: int,
) -> None:
    """For any chunks and any upstream gradient, not only a scalar."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, width, generator=draw)
    bias = torch.randn(vocabulary, generator=draw) if biased else None
    head = Head(weight, bias, scale, softcap)
    hidden = torch.randn(count, width, generator=draw, requires_grad=True)
    targets = torch.randint(vocabulary, (count,), generator=draw)
    upstream = torch.randn(count, generator=draw)
    precise = hidden.detach().double().requires_grad_()
    wanted = reference(precise, targets, in_double(head))
    with small_chunks(*chunks):
        losses = project_losses(hidden, targets, head)
        without_gradient = project_losses(hidden.detach(), targets, head)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.allclose(without_gradient, losses, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(losses, hidden, upstream)
    (theirs,) = torch.autograd.grad(wanted, precise, upstream.double())
    assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("distance", [9.0, 50.0, 500.0])
@pytest.mark.parametrize("right", [True, False])
def test_sure_predictions_keep_loss_and_gradient(distance: float, *, right: bool) -> None:
    """Right by far, 1 - p has float32's digits; wrong by far, the loss stays finite."""
    head = Head(torch.tensor([[1.0], [0.0]]))
    hidden = torch.tensor([[distance]], requires_grad=True)
    targets = torch.tensor([0 if right else 1])
    precise = hidden.detach().double().requires_grad_()
    wanted = reference(precise, targets, in_double(head))
    losses = project_losses(hidden, targets, head)
    (ours,) = torch.autograd.grad(losses.sum(), hidden)
    (theirs,) = torch.autograd.grad(wanted.sum(), precise)
    assert losses.double().item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-7)
    assert ours.double().item() == pytest.approx(theirs.item(), rel=1e-3, abs=1e-7)


def test_a_factor_upstream_keeps_float32_digits_in_bfloat16() -> None:
    """1 / tokens rounded to bfloat16 would be off by up to 0.4 % in every update."""
    draw = torch.Generator().manual_seed(0)
    head = Head(torch.randn(50, 8, generator=draw).bfloat16())
    hidden = torch.randn(64, 8, generator=draw).bfloat16().requires_grad_()
    targets = torch.randint(50, (64,), generator=draw)
    unit, third = (
        torch.autograd.grad(project_losses(hidden, targets, head).sum() * factor, hidden)[0]
        for factor in (1.0, 1 / 3)
    )
    assert (unit.double() / 3).norm().item() == pytest.approx(third.double().norm().item(), 3e-4)


@pytest.mark.parametrize("vocabulary", [2, 2_048, 49_152, 151_936, 262_144, 1_000_000])
def test_a_gpu_chunk_is_large_but_bounded(vocabulary: int) -> None:
    rows, block = choose_rows(torch.device("cuda"), vocabulary)
    assert 512 <= rows <= 4096
    assert rows == 512 or rows * vocabulary <= GPU_LOGITS
    assert 1 <= block <= GPU_LOGITS


def test_a_head_that_could_train_gets_no_gradient_here() -> None:
    weight = torch.randn(7, 4, requires_grad=True)
    hidden = torch.randn(3, 4, requires_grad=True)
    project_losses(hidden, torch.tensor([0, 1, 2]), Head(weight)).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        self.count += operation in (torch.ops.aten.mm.out, torch.ops.aten.addmm.out)
        return operation(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("differentiable", "recording", "products"),
    [(True, True, 2), (False, True, 1), (True, False, 1)],
)
def test_a_gradient_is_worked_out_only_where_one_is_wanted(
    *, differentiable: bool, recording: bool, products: int
) -> None:
    hidden = torch.randn(3, 4, requires_grad=differentiable)
    with torch.set_grad_enabled(recording), Products() as seen:
        project_losses(hidden, torch.tensor([0, 1, 2]), Head(torch.randn(7, 4)))
    assert seen.count == products
