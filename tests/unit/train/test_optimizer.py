"""Flat and plain AdamW take the same updates, and each goes on from what the other remembers."""

from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from peftkit.train.optimizer import ALIGNED, make_optimizer, read_moments, set_rate, write_moments

SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (7, 11), "b.bias": (1,)}
FASTER = {"b.weight": 16.0, "b.bias": 16.0}
Parameters = dict[str, Parameter]


def make_parameters() -> Parameters:
    generator = torch.Generator().manual_seed(0)
    return {
        name: Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()
    }


def update(parameters: Parameters, optimizer: torch.optim.Optimizer, seed: int) -> Tensor:
    """One update the loop's way: gradients added to what is there, clipped, applied, zeroed."""
    generator = torch.Generator().manual_seed(seed)
    wanted = [torch.randn(p.shape, generator=generator) for p in parameters.values()]
    losses = [(p * w).sum() for p, w in zip(parameters.values(), wanted, strict=True)]
    cast("Tensor", sum(losses)).backward()
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    norm = clip_grad_norm_(leaves, 1.0)
    set_rate(optimizer, 0.01 * (seed + 1))
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return norm


@pytest.mark.parametrize("factors", [{}, FASTER])
def test_flat_and_plain_take_the_same_updates(factors: dict[str, float]) -> None:
    flat, plain = make_parameters(), make_parameters()
    one = make_optimizer(flat, weight_decay=0.1, factors=factors)
    other = make_optimizer(plain, weight_decay=0.1, flat=False, factors=factors)
    for seed in range(6):
        norms = update(flat, one, seed), update(plain, other, seed)
        assert norms[0] > 1
        assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-6)
    for name, parameter in flat.items():
        assert torch.allclose(parameter, plain[name], rtol=1e-6, atol=1e-7), name
        assert not torch.equal(parameter, make_parameters()[name])


def test_flat_is_one_buffer_a_group_and_its_filling_never_moves() -> None:
    parameters = make_parameters()
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    assert [len(leaf) for leaf in leaves] == [ALIGNED + 2 * ALIGNED, 2 * ALIGNED]
    for seed in range(3):
        update(parameters, optimizer, seed)
    used = sum(parameter.numel() for parameter in parameters.values())
    assert sum(int((leaf != 0).sum()) for leaf in leaves) == used


@pytest.mark.parametrize("flat", [True, False])
def test_a_factor_makes_the_first_step_as_many_times_longer(*, flat: bool) -> None:
    """AdamW's first step is as long as the learning rate, whatever the gradient is."""
    parameters, start = make_parameters(), make_parameters()
    optimizer = make_optimizer(parameters, weight_decay=0.0, flat=flat, factors=FASTER)
    update(parameters, optimizer, 0)
    for name, parameter in parameters.items():
        moved = (parameter - start[name]).abs()
        assert torch.allclose(moved, torch.tensor(0.01 * FASTER.get(name, 1)), rtol=1e-3), name


def test_a_factor_of_one_changes_no_bit() -> None:
    plain, named = make_parameters(), make_parameters()
    one = make_optimizer(plain, weight_decay=0.1)
    other = make_optimizer(named, weight_decay=0.1, factors=dict.fromkeys(SHAPES, 1.0))
    for seed in range(3):
        update(plain, one, seed)
        update(named, other, seed)
    assert all(torch.equal(plain[name], named[name]) for name in SHAPES)


def test_number_formats_do_not_mix() -> None:
    parameters = make_parameters()
    parameters["b.weight"] = Parameter(parameters["b.weight"].to(torch.bfloat16))
    optimizer = make_optimizer(parameters, weight_decay=0.0)
    update(parameters, optimizer, 0)
    assert parameters["b.weight"].dtype == torch.bfloat16
    assert sorted(str(p.dtype) for g in optimizer.param_groups for p in g["params"]) == [
        "torch.bfloat16",
        "torch.float32",
        "torch.float32",
    ]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("then", [True, False])
@pytest.mark.parametrize("factors", [{}, FASTER])
def test_each_goes_on_from_what_the_other_remembers(
    factors: dict[str, float], *, first: bool, then: bool
) -> None:
    parameters = make_parameters()
    optimizer = make_optimizer(parameters, weight_decay=0.1, flat=first, factors=factors)
    for seed in range(3):
        update(parameters, optimizer, seed)
    again = {name: Parameter(p.detach().clone()) for name, p in parameters.items()}
    other = make_optimizer(again, weight_decay=0.1, flat=then, factors=factors)
    remembered = {n: v.clone() for n, v in read_moments(optimizer, parameters).items()}
    assert len(remembered) == 3 * len(SHAPES)
    write_moments(other, again, remembered)
    for seed in range(3, 6):
        update(parameters, optimizer, seed)
        update(again, other, seed)
    for name, parameter in parameters.items():
        assert torch.allclose(again[name], parameter, rtol=1e-6, atol=1e-7), name
    assert first != then or all(torch.equal(again[n], p) for n, p in parameters.items())


def test_an_optimizer_that_forgot_goes_elsewhere() -> None:
    """A negative control for the test above."""
    parameters = make_parameters()
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    update(parameters, optimizer, 0)
    again = {name: Parameter(p.detach().clone()) for name, p in parameters.items()}
    other = make_optimizer(again, weight_decay=0.1)
    update(parameters, optimizer, 1)
    update(again, other, 1)
    assert not torch.allclose(again["a.weight"], parameters["a.weight"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("flat", [True, False])
def test_paged_takes_the_updates_of_plain(*, flat: bool) -> None:
    paged, plain = make_parameters(), make_parameters()
    one = make_optimizer(paged, weight_decay=0.1, flat=flat, paged=True, factors=FASTER)
    other = make_optimizer(plain, weight_decay=0.1, flat=False, factors=FASTER)
    for seed in range(6):
        update(paged, one, seed)
        update(plain, other, seed)
    for name, parameter in paged.items():
        assert torch.allclose(parameter, plain[name], rtol=1e-5, atol=1e-6), name
        assert not torch.equal(parameter, make_parameters()[name])


def test_paged_goes_on_from_what_plain_remembers_and_back() -> None:
    plain, paged = make_parameters(), make_parameters()
    one = make_optimizer(plain, weight_decay=0.1)
    other = make_optimizer(paged, weight_decay=0.1, paged=True)
    for seed in range(3):
        update(plain, one, seed)
    moments = read_moments(one, plain)
    write_moments(other, paged, moments)
    again = read_moments(other, paged)
    assert again.keys() == moments.keys()
    assert all(torch.equal(again[name], moments[name]) for name in moments)
    for name, parameter in paged.items():
        parameter.data.copy_(plain[name])
    update(plain, one, 3)
    update(paged, other, 3)
    for name, parameter in paged.items():
        assert torch.allclose(parameter, plain[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.gpu
def test_paged_moments_lie_in_pages_and_the_updates_stay_the_same() -> None:
    wide = (512, 512)  # above the size from which moments are paged
    paged = {"a.weight": Parameter(torch.ones(wide, device="cuda"))}
    plain = {"a.weight": Parameter(torch.ones(wide, device="cuda"))}
    one = make_optimizer(paged, weight_decay=0.1, paged=True)
    other = make_optimizer(plain, weight_decay=0.1)
    for seed in range(4):
        gradient = torch.randn(wide, generator=torch.Generator().manual_seed(seed)).cuda()
        for parameters, optimizer in ((paged, one), (plain, other)):
            parameters["a.weight"].grad.copy_(gradient)  # type: ignore[union-attr]
            set_rate(optimizer, 0.01)
            optimizer.step()
    (state,) = one.state.values()
    assert state["exp_avg"].is_paged
    assert torch.allclose(paged["a.weight"], plain["a.weight"], rtol=1e-5, atol=1e-6)
    moments = read_moments(other, plain)
    for name, moment in read_moments(one, paged).items():
        assert torch.allclose(moment.cpu(), moments[name].cpu(), rtol=1e-4, atol=1e-7), name
