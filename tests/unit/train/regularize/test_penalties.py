"""Penalties of weights: of the update, not of its factors, with gradients as autograd has them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import full, gradients, load, make_examples, move
from transformers import AutoModelForSequenceClassification

from peftkit.adapters.attach import attach, trainable
from peftkit.adapters.beginning import go_on_as
from peftkit.adapters.in_place import BEFORE
from peftkit.adapters.store import save_adapter
from peftkit.adapters.updates import layer_updates
from peftkit.base.locate import Origin
from peftkit.data.task import CAUSAL
from peftkit.recipe.sections.adapter import HeadSection, LoraSection
from peftkit.train.regularize.decay_to_init import decay_to_init
from peftkit.train.regularize.ewc import ewc
from peftkit.train.regularize.kept_fisher import find_fisher
from peftkit.train.regularize.l2sp import l2sp, squared_size
from peftkit.train.regularize.parts import Parts, tell_parts

Penalty = Callable[[], torch.Tensor]


def fisher_of(model: Any, parts: Parts, *, rows: int = 3) -> dict[str, torch.Tensor]:
    return find_fisher(model, parts, make_examples(rows), task=CAUSAL, pad_id=0, base="made")


def changes(model: Any) -> dict[str, torch.Tensor]:
    """The dense change of each adapted layer, still differentiable in its factors."""
    found = {}
    for update in layer_updates(model):
        down, up = update.factors()
        found[update.name] = update.scale * (up @ down)
    return found


def test_l2sp_is_half_the_squared_size_of_the_update(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    parts = tell_parts(model)
    move(model)
    dense = 0.7 / 2 * sum(change.square().sum() for change in changes(model).values())
    dense.backward()
    wanted = gradients(model)
    model.zero_grad(set_to_none=True)
    assert l2sp(parts, 0.7).item() == pytest.approx(dense.item(), rel=1e-5)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("kind", ["l2sp", "ewc"])
def test_what_goes_on_is_pulled_to_where_it_was(
    tiny_llama: Path, tmp_path: Path, kind: str
) -> None:
    """A stage that continues an adapter refers to what that was, not to the untouched base."""
    save_adapter(
        move(load(tiny_llama)), tmp_path, Origin("org/tiny", tiny_llama, None), method="lora"
    )
    model = load(tiny_llama)
    old = {name: change.detach() for name, change in changes(move(load(tiny_llama))).items()}
    go_on_as(model, tmp_path)
    parts = tell_parts(model)
    fisher = fisher_of(model, parts)
    penalty: Penalty = (
        partial(l2sp, parts, 2.0) if kind == "l2sp" else partial(ewc, parts, fisher, 2.0)
    )
    assert penalty().item() == pytest.approx(0, abs=1e-9)
    move(model, seed=1)
    dense = {u.name: u.scale * _product(u.layer) - old[u.name] for u in layer_updates(model)}
    squares = {name: change.square() for name, change in dense.items()}
    if kind == "ewc":
        squares = {name: fisher[f"{name}.weight"] * square for name, square in squares.items()}
    wanted = sum(float(square.sum()) for square in squares.values())
    assert wanted > 0
    assert penalty().item() == pytest.approx(wanted, rel=1e-4)


def _product(layer: Any) -> torch.Tensor:
    return (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()


@given(seed=st.integers(0, 10**6), rank=st.integers(1, 6), scale=st.floats(0.1, 4.0))
def test_turning_the_factors_changes_no_size(seed: int, rank: int, scale: float) -> None:
    drawn = torch.Generator().manual_seed(seed)
    make = partial(torch.randn, generator=drawn, dtype=torch.float64)
    down, up = make(rank, 7), make(5, rank)
    turn = make(rank, rank) + 4 * torch.eye(rank, dtype=torch.float64)
    before = squared_size(down, up, scale)
    after = squared_size(turn @ down, up @ torch.linalg.inv(turn), scale)
    assert after.item() == pytest.approx(before.item(), rel=1e-8)
    assert before.item() == pytest.approx((scale * up @ down).square().sum().item(), rel=1e-10)


@pytest.mark.parametrize("kind", ["l2sp", "ewc"])
def test_turning_the_factors_of_a_model_changes_no_penalty(tiny_llama: Path, kind: str) -> None:
    """Weight decay of the factors, for comparison, changes a lot."""
    model = load(tiny_llama)
    parts = tell_parts(model)
    fisher = fisher_of(model, parts)
    penalty: Penalty = (
        partial(l2sp, parts, 1.0) if kind == "l2sp" else partial(ewc, parts, fisher, 1.0)
    )
    move(model)
    before, decay = penalty().item(), decayed(model)
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for update in layer_updates(model):
            turn = torch.randn(4, 4, generator=drawn) + 3 * torch.eye(4)
            update.layer.lora_A["default"].weight.copy_(
                turn @ update.layer.lora_A["default"].weight
            )
            up = update.layer.lora_B["default"].weight
            up.copy_(up @ torch.linalg.inv(turn))
    assert penalty().item() == pytest.approx(before, rel=1e-4)
    assert before > 0
    assert decayed(model) > 2 * decay


def decayed(model: Any) -> float:
    return sum(float(p.detach().square().sum()) for p in trainable(model).values())


def test_ewc_is_half_and_weighs_each_number(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    parts = tell_parts(model)
    fisher = fisher_of(model, parts)
    move(model)
    dense = (
        30
        / 2
        * sum(
            (fisher[f"{name}.weight"] * change.square()).sum()
            for name, change in changes(model).items()
        )
    )
    dense.backward()
    wanted = gradients(model)
    model.zero_grad(set_to_none=True)
    assert ewc(parts, fisher, 30.0).item() == pytest.approx(dense.item(), rel=1e-5)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-8), name


@pytest.mark.parametrize("kind", ["l2sp", "ewc"])
def test_of_the_base_s_own_parameters_it_is_their_change(tiny_llama: Path, kind: str) -> None:
    model = full(tiny_llama)
    parts = tell_parts(model)
    fisher = fisher_of(model, parts)
    move(model)
    before = getattr(model, BEFORE)
    squares = {name: (p - before[name]).square().detach() for name, p in trainable(model).items()}
    if kind == "l2sp":
        wanted = sum(square.sum() for square in squares.values())
        found = l2sp(parts, 2.0)
    else:
        wanted = sum((fisher[name] * square).sum() for name, square in squares.items())
        found = ewc(parts, fisher, 2.0)
    assert found.item() == pytest.approx(float(wanted), rel=1e-4)
    assert gradients(model).keys() == trainable(model).keys()


@pytest.mark.parametrize("variant", ["plain", "pissa", "rslora"])
def test_a_fresh_adapter_costs_nothing(tiny_llama: Path, variant: str) -> None:
    """Also where the factors do not start at zero: what counts is the change of the weights."""
    model = load(tiny_llama, LoraSection(rank=4, variant=variant, bias=variant == "plain"))
    parts = tell_parts(model)
    fisher = fisher_of(model, parts)
    assert l2sp(parts, 1.0).item() == pytest.approx(0, abs=1e-6)
    assert ewc(parts, fisher, 1.0).item() == pytest.approx(0, abs=1e-8)
    start = {name: p.detach().clone() for name, p in trainable(model).items()}
    assert decay_to_init(trainable(model), start, 1.0).item() == 0
    move(model)
    assert l2sp(parts, 1.0).item() > 1e-4
    assert ewc(parts, fisher, 1.0).item() > 0


def test_the_bias_of_an_update_counts(tiny_llama: Path) -> None:
    model = load(tiny_llama, LoraSection(rank=4, bias=True))
    parts = tell_parts(model)
    fisher = fisher_of(model, parts)
    with torch.no_grad():
        update = layer_updates(model)[0]
        assert update.bias is not None
        update.bias.fill_(0.5)
    moved = (update.scale * 0.5) ** 2
    assert l2sp(parts, 2.0).item() == pytest.approx(moved * update.bias.numel())
    weights = fisher[f"{update.name}.bias"]
    assert ewc(parts, fisher, 2.0).item() == pytest.approx(moved * float(weights.sum()), rel=1e-5)


def test_a_new_head_is_pulled_to_zero_by_a_strength_of_its_own(tiny_llama: Path) -> None:
    for section in (LoraSection(rank=4), HeadSection(method="head")):
        plain = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=3)
        model = attach(plain.requires_grad_(requires_grad=False), section, seed=1)
        parts = tell_parts(model)
        assert len(parts.heads) == 1
        (head,) = parts.heads.values()
        assert l2sp(parts, 1.0).item() == 0
        found = l2sp(parts, 1.0, 4.0).item()
        assert found == pytest.approx(2 * float(head.detach().square().sum()), rel=1e-5)


def test_decay_is_of_the_parameters_themselves(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    own = trainable(model)
    start = {name: p.detach().clone() for name, p in own.items()}
    move(model)
    wanted = sum((p - start[name]).square().sum() for name, p in own.items())
    assert decay_to_init(own, start, 2.0).item() == pytest.approx(wanted.item(), rel=1e-5)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, 2 * (own[name] - start[name]), atol=1e-6), name


def test_the_information_is_of_the_base_and_kept(tiny_llama: Path) -> None:
    """It does not change with the adapter, and is found again only under the same rows."""
    model = load(tiny_llama)
    fresh = fisher_of(model, tell_parts(model), rows=2)
    move(model)
    again = fisher_of(model, tell_parts(model), rows=2)
    other = fisher_of(model, tell_parts(model), rows=4)
    assert len(fresh) == 14
    for name, value in fresh.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])
    assert not any(p.grad is not None for p in model.parameters())
