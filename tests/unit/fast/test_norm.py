"""Norms that keep less give the same bits forward and the family's own gradient."""

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, adapt, assert_same_gradients, batch_of, gradients
from torch import Tensor

from peftkit.fast import norm
from peftkit.fast.loss import summed_loss
from peftkit.fast.norm import RootMeanSquareNorm

TAKEN = ("llama", "qwen3", "mistral", "gemma2", "gemma3", "granite", "hyperclovax")
LEFT = sorted(set(FAMILIES) - set(TAKEN) - {"llama, tied", "falcon h1", "recurrent gemma"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TAKEN)
def test_the_loss_is_the_same_and_so_are_gradients(family: str, dtype: torch.dtype) -> None:
    plain, fast = adapt(family, dtype=dtype).train(), adapt(family, dtype=dtype).train()
    count, why = norm.enable(fast)
    assert count >= 5
    assert "give the same bits" in why
    assert norm.is_on(fast)
    losses = summed_loss(plain, batch_of()), summed_loss(fast, batch_of())
    assert torch.equal(*losses)
    limit = 1e-5 if dtype == torch.float32 else 5e-2
    assert_same_gradients(gradients(fast, losses[1]), gradients(plain, losses[0]), limit)


@pytest.mark.parametrize("family", LEFT)
def test_other_norms_are_left_alone(family: str) -> None:
    model = adapt(family)
    count, why = norm.enable(model)
    assert count == 0
    assert "norm" in why
    assert not norm.is_on(model)


@pytest.mark.parametrize("shifted", [False, True])
def test_autograd_agrees_in_double_precision(shifted: bool) -> None:  # noqa: FBT001 - a parameter
    """Its own steps take float32 copies, which a check in double precision must not see."""
    torch.manual_seed(0)
    x, weight = torch.randn(6, 9), torch.randn(9)
    above = torch.randn(6, 9)

    def plain(values: Tensor) -> Tensor:
        whole = values.double()
        factor = (1 + weight if shifted else weight).double()
        return whole * torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + 1e-6) * factor

    wanted = torch.func.vjp(plain, x)[1](above.double())[0]
    leaf = x.clone().requires_grad_()
    RootMeanSquareNorm.apply(leaf, weight, 1e-6, shifted).backward(above)
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad.double(), wanted.double(), atol=1e-6)
    assert wanted.norm() > 1


def kept_bytes(model: Any) -> int:
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = summed_loss(model, batch_of())
    assert loss.requires_grad
    return sum(kept.values())


def test_the_float32_copy_is_not_kept() -> None:
    model = adapt(dtype=torch.bfloat16).train()
    before = kept_bytes(model)
    norm.enable(model)
    # 2 layers of two norms and the last one, each 34 tokens x 32, in float32 instead of bfloat16
    assert before - kept_bytes(model) >= 4 * 34 * 32 * 2


def test_evaluation_and_a_weight_that_trains_are_left_to_the_family() -> None:
    model = adapt().train()
    model.get_base_model().model.norm.weight.requires_grad_()
    count, why = norm.enable(model)
    assert count == 4
    assert "4 of 5" in why
    model.eval()
    with torch.no_grad():
        assert torch.equal(summed_loss(model, batch_of()), summed_loss(adapt().eval(), batch_of()))
    assert "compute something else, or train" in norm.enable(adapt_all())[1]


def adapt_all() -> Any:
    model = adapt()
    for parameter in model.parameters():
        parameter.requires_grad_()
    return model
