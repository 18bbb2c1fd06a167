"""The gate passes every sound head, finds planted wrong ones, and changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, adapt, batch_of, build, found_head
from torch import Tensor

from peftkit.fast.chunked import Head, project_losses
from peftkit.fast.head import TOLERANCE, check_head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_head_passes_the_gate(family: str, dtype: torch.dtype) -> None:
    model = adapt(family, dtype=dtype)
    assert check_head(model, batch_of(), found_head(model)) <= TOLERANCE[dtype]


WRONG: dict[str, tuple[str, Callable[[Head], Head]]] = {
    "scale forgotten": ("cohere", lambda head: replace(head, scale=1.0)),
    "divisor as factor": ("granite", lambda head: replace(head, scale=1 / head.scale)),
    "cap forgotten": ("gemma2", lambda head: replace(head, softcap=None)),
    "bias forgotten": ("phi", lambda head: replace(head, bias=None)),
    "another weight": ("llama", lambda head: replace(head, weight=head.weight.flip(0))),
    "a broken weight": ("llama", lambda head: replace(head, weight=head.weight * torch.nan)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_head_does_not(case: str, dtype: torch.dtype) -> None:
    family, spoil = WRONG[case]
    model = adapt(family, dtype=dtype)
    assert not check_head(model, batch_of(), spoil(found_head(model))) <= TOLERANCE[dtype]


def test_a_right_loss_with_a_wrong_gradient_does_not_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def double_slopes(*given: Any) -> Tensor:
        losses = project_losses(*given)
        return 2 * losses - losses.detach()

    model, batch = adapt(), batch_of()
    monkeypatch.setattr("peftkit.fast.head.project_losses", double_slopes)
    assert check_head(model, batch, found_head(model)) == pytest.approx(1, rel=1e-5)


def test_a_batch_without_a_trained_token_proves_nothing() -> None:
    model = build()
    difference = check_head(model, batch_of(density=0), found_head(model))
    assert not difference <= TOLERANCE[torch.float32]


def test_the_gate_leaves_the_model_as_it_was() -> None:
    """Dropout is off inside, whatever mode it found, so the two paths can be compared at all."""
    model = adapt(dropout=0.5).train()
    inner = model.get_base_model().model
    inner.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert check_head(model, batch_of(), found_head(model)) < 1e-5
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not inner._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_gate_looks_at_one_row_up_to_its_first_64_trained_tokens() -> None:
    """The plain path holds all logits, which for the whole batch may be more than fits."""
    batch = batch_of(rows=3, time=60, density=0)
    batch.targets[1, 3:33] = 7
    long = replace(batch, inputs=batch.inputs.repeat(1, 40), targets=batch.targets.repeat(1, 40))
    model, shapes = build(), []
    model.model.register_forward_pre_hook(
        lambda _module, _places, named: shapes.append(tuple(named["input_ids"].shape)),
        with_kwargs=True,
    )
    check_head(model, long, found_head(model))
    assert shapes == [(1, 60 + 60 + 3 + 4)] * 2
