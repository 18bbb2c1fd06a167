"""Laws of merging low-rank changes: no loss, no gauge, no order, and what the papers say."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peftkit.errors import InputError
from peftkit.merge.methods.catalog import METHODS
from peftkit.merge.methods.core import Pair, expand, shared
from peftkit.merge.methods.in_core import Factored
from peftkit.merge.methods.inputs import Inputs

CORE = [name for name, method in METHODS.items() if method.kind == "core"]
SIZES = ((9, 7), (6, 8))
RANKS = (1, 3, 2)
Model = list[list[Pair]]
"""For each layer what each input changes."""
seeds = st.integers(0, 10_000)


def model(seed: int, ranks: Sequence[int] = RANKS) -> Model:
    generator = torch.Generator().manual_seed(seed)

    def pair(rows: int, columns: int, rank: int) -> Pair:
        up = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
        return up, torch.randn(rank, columns, generator=generator, dtype=torch.float64)

    return [[pair(*size, rank) for rank in ranks] for size in SIZES]


def merge(
    name: str,
    changes: Model,
    told: dict[str, Any] | None = None,
    *,
    weights: Sequence[float] = (),
    order: Sequence[int] = (),
) -> list[Tensor]:
    """Every layer merged, as a dense change, with the inputs given in some order."""
    order = order or range(len(changes[0]))
    weights = weights or ([1.0, -0.5, 2.0] if METHODS[name].weights == "any" else [1.0] * 3)
    inputs = Inputs(
        tuple(weights[each] for each in order),
        tuple(f"adapter-{each}" for each in order),
        tuple("digest-" + "cab"[each] for each in order),
    )
    METHODS[name].check(inputs)
    layers = [
        Factored(f"layer-{place}", tuple(layer[each] for each in order))
        for place, layer in enumerate(changes)
    ]
    made = METHODS[name].function(layers, inputs, METHODS[name].read(told or {}))
    return [up @ down for _, (up, down) in made]


def weighted_sum(changes: Model, weights: Sequence[float]) -> list[Tensor]:
    return [
        torch.stack([w * (up @ down) for w, (up, down) in zip(weights, layer, strict=True)]).sum(0)
        for layer in changes
    ]


def assert_close(one: Sequence[Tensor], other: Sequence[Tensor], limit: float = 1e-9) -> None:
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, atol=limit, rtol=limit)


@pytest.mark.parametrize("name", ["core", "knots"])
@given(seeds)
@settings(max_examples=10)
def test_a_linear_merge_in_any_space_is_task_arithmetic(name: str, seed: int) -> None:
    changes, weights = model(seed), [0.5, -2.0, 3.0]
    assert_close(merge(name, changes, weights=weights), weighted_sum(changes, weights), 1e-10)


@pytest.mark.parametrize("name", CORE)
@given(seeds)
@settings(max_examples=10)
def test_how_a_change_is_written_does_not_matter(name: str, seed: int) -> None:
    changes, generator = model(seed), torch.Generator().manual_seed(seed)
    rewritten = [
        [
            (up @ torch.linalg.inv(gauge), gauge @ down)
            for up, down in layer
            for gauge in [gauge_of(up.shape[1], generator)]
        ]
        for layer in changes
    ]
    assert_close(merge(name, changes), merge(name, rewritten), 1e-7)


def gauge_of(rank: int, generator: torch.Generator) -> Tensor:
    """An invertible matrix that is far from orthogonal."""
    random = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(random)
    return left * torch.linspace(0.3, 5, rank, dtype=torch.float64) @ right


@pytest.mark.parametrize("name", CORE)
@given(seeds, st.permutations([0, 1, 2]))
@settings(max_examples=10)
def test_the_order_of_inputs_changes_no_bit(name: str, seed: int, order: list[int]) -> None:
    changes = model(seed)
    one, other = merge(name, changes), merge(name, changes, order=order)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.mark.parametrize("name", CORE)
@given(seeds, st.sampled_from([-1.0, 3.0, 1e-3]))
@settings(max_examples=10)
def test_scaled_changes_give_the_scaled_merge(name: str, seed: int, factor: float) -> None:
    changes = model(seed)
    larger = [[(up * factor, down) for up, down in layer] for layer in changes]
    expected = [each * factor for each in merge(name, changes)]
    assert_close(merge(name, larger), expected, 1e-9)


@pytest.mark.parametrize("name", [name for name in CORE if name != "iso-c"])
def test_one_input_is_the_merge(name: str) -> None:
    changes = model(1, [3])
    told = {"keep": 1.0, "energy": 1.0}
    known = {key: told[key] for key in told if hasattr(METHODS[name].read({}), key)}
    assert_close(merge(name, changes, known, weights=[1.0]), weighted_sum(changes, [1.0]))


@pytest.mark.parametrize("name", CORE)
def test_changes_of_nothing_give_a_merge_of_no_rank(name: str) -> None:
    nothing = (torch.zeros(5, 2), torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    empty = (torch.zeros(5, 0), torch.zeros(0, 4))
    inputs = Inputs((1.0, 1.0), ("a", "b"), ("a", "b"))
    layers = [Factored("layer", (nothing, empty))]
    ((_, (up, down)),) = METHODS[name].function(layers, inputs, METHODS[name].read({}))
    assert (up.shape, down.shape) == ((5, 0), (0, 4))


@pytest.mark.parametrize("name", ["core", "iso-c", "svd-trim"])
def test_what_cancels_has_no_rank_however_it_is_written(name: str) -> None:
    gauge = gauge_of(3, torch.Generator().manual_seed(0))
    up, down = model(2, [3])[0][0]
    layers = [Factored("layer", ((up, down), (up @ torch.linalg.inv(gauge), gauge @ down)))]
    inputs = Inputs((1.0, -1.0), ("a", "b"), ("a", "b"))
    ((_, made),) = METHODS[name].function(layers, inputs, METHODS[name].read({}))
    assert made[0].shape[1] == 0


@pytest.mark.parametrize("name", [name for name in CORE if name not in ("core", "knots")])
def test_scaling_multiplies_the_merge(name: str) -> None:
    changes = model(3)
    expected = [each * -0.5 for each in merge(name, changes)]
    assert_close(merge(name, changes, {"lambda": -0.5}), expected)


# What the papers say, computed on dense changes


def dense(changes: Model) -> list[list[Tensor]]:
    return [[up @ down for up, down in layer] for layer in changes]


def test_svd_trim_keeps_the_strongest_directions_of_each() -> None:
    changes, weights = model(4), [1.0, -0.5, 2.0]
    expected = []
    for layer in dense(changes):
        merged = torch.zeros_like(layer[0])
        for weight, change in zip(weights, layer, strict=True):
            left, values, right = torch.linalg.svd(change, full_matrices=False)
            shares = values.square().cumsum(0) / values.square().sum()
            kept = int((shares < 0.7).sum()) + 1
            merged += weight * (left[:, :kept] * values[:kept]) @ right[:kept]
        expected.append(merged)
    assert_close(merge("svd-trim", changes, {"energy": 0.7}), expected)


@given(seeds)
@settings(max_examples=10)
def test_tsv_makes_singular_vectors_orthogonal(seed: int) -> None:
    changes, weights = model(seed), [1.0, -0.5, 2.0]
    expected = []
    for layer in dense(changes):
        parts = [torch.linalg.svd(change, full_matrices=False) for change in layer]
        most = min(layer[0].shape) // 3
        kept = [min(most, rank) for rank in RANKS]
        left = torch.cat([u[:, :k] for (u, _, _), k in zip(parts, kept, strict=True)], 1)
        right = torch.cat([v[:k] for (_, _, v), k in zip(parts, kept, strict=True)], 0)
        values = torch.cat(
            [w * s[:k] for (_, s, _), k, w in zip(parts, kept, weights, strict=True)]
        )
        expected.append(polar(left) * values @ polar(right))
    assert_close(merge("tsv", changes), expected)


def polar(vectors: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(vectors, full_matrices=False)
    return left @ right


def test_tsv_of_equal_changes_is_that_change() -> None:
    changes = [[layer[0], layer[0]] for layer in model(5, [2])]
    assert_close(
        merge("tsv", changes, weights=[1.0, 1.0]), [up @ down for (up, down), _ in changes]
    )


@given(seeds)
@settings(max_examples=10)
def test_iso_c_makes_all_directions_equally_strong(seed: int) -> None:
    changes, weights = model(seed), [1.0, -0.5, 2.0]
    for mine, whole in zip(merge("iso-c", changes), weighted_sum(changes, weights), strict=True):
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
        assert float(values[5] / values[0]) > 1e-6
        assert float(values[6:].sum()) < 1e-9
        expected = left[:, :6] @ right[:6] * values[:6].mean()
        torch.testing.assert_close(mine, expected, atol=1e-8, rtol=1e-8)


@given(seeds)
@settings(max_examples=5)
def test_wudi_is_where_descent_from_the_sum_ends(seed: int) -> None:
    """Conjugate gradients on the published objective, from the sum of the changes."""
    changes = model(seed, (2, 2))
    weights = [1.0, 1.0]
    for mine, layer, start in zip(
        merge("wudi", changes, weights=weights),
        dense(changes),
        weighted_sum(changes, weights),
        strict=True,
    ):
        where = start.clone()
        direction = residual = -gradient(where, layer)
        for _ in range(60):
            bent = gradient(direction, layer) - gradient(torch.zeros_like(where), layer)
            step = float(residual.square().sum() / (direction * bent).sum())
            where, fresh = where + step * direction, residual - step * bent
            if float(fresh.norm()) < 1e-13:
                break
            direction = fresh + float(fresh.square().sum() / residual.square().sum()) * direction
            residual = fresh
        torch.testing.assert_close(mine, where, atol=1e-6, rtol=1e-6)


def gradient(where: Tensor, changes: Sequence[Tensor]) -> Tensor:
    """Of the sum of |(D - D_i) D_i^T|^2 / |D_i|^2."""
    where = where.detach().requires_grad_()
    loss = sum(((where - each) @ each.T).square().sum() / each.square().sum() for each in changes)
    assert isinstance(loss, Tensor)
    (slope,) = torch.autograd.grad(loss, where)
    return slope


def test_knots_ties_is_ties_along_the_output_directions() -> None:
    changes, expected = model(6), []
    for layer in dense(changes):
        left, values, right = torch.linalg.svd(torch.cat(layer, 1), full_matrices=False)
        parts = (values[:6, None] * right[:6]).split(layer[0].shape[1], 1)
        expected.append(left[:, :6] @ plain_ties(torch.stack(parts), [1.0, -0.5, 2.0], 0.4))
    told = {"keep": 0.4, "scope": "tensor"}
    assert_close(merge("knots-ties", changes, told), expected)


def test_core_ties_is_ties_along_the_directions_of_both_sides() -> None:
    changes, expected = model(7), []
    for layer in dense(changes):
        left = torch.linalg.svd(torch.cat(layer, 1), full_matrices=False)[0][:, :6]
        right = torch.linalg.svd(torch.cat(layer, 0), full_matrices=False)[2][:6]
        parts = torch.stack([left.T @ change @ right.T for change in layer])
        expected.append(left @ plain_ties(parts, [1.0, -0.5, 2.0], 0.4) @ right)
    told = {"keep": 0.4, "scope": "tensor"}
    assert_close(merge("core-ties", changes, told), expected)


def plain_ties(changes: Tensor, weights: Sequence[float], keep: float) -> Tensor:
    flat = changes.flatten(1)
    bounds = flat.abs().sort(dim=1, descending=True).values[:, int(keep * flat.shape[1]) - 1]
    flat = flat * (flat.abs() >= bounds[:, None]) * torch.tensor(weights)[:, None]
    agreeing = flat.sign() == flat.sum(0).sign()
    return ((flat * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)).view(changes.shape[1:])


# The space


def test_the_space_holds_every_change_and_tells_how_sure_its_axes_are() -> None:
    (layer, _) = model(8)
    space = shared(layer, "layer")
    assert space.left.shape == (9, 6)
    assert space.right.shape == (6, 7)
    torch.testing.assert_close(space.left.T @ space.left, torch.eye(6, dtype=torch.float64))
    for (up, down), core in zip(layer, space.cores, strict=True):
        torch.testing.assert_close(space.left @ core @ space.right, up @ down)
    assert 0 < space.gap < 1
    twins = torch.eye(4, dtype=torch.float64)[:, :2]
    assert shared([(twins, twins.T)], "layer").gap < 1e-12


def test_a_merge_has_the_lowest_rank_and_factors_of_one_size() -> None:
    up, down = model(9, [3])[0][0]
    space = shared([(up, down), (up * 2, down)], "layer")
    one, other = expand(space, space.cores[0] + space.cores[1])
    assert one.shape[1] == 3
    torch.testing.assert_close(one.norm(dim=0), other.norm(dim=1))
    assert bool((one.gather(0, one.abs().argmax(0, keepdim=True)) != 0).all())


# Refusals


@pytest.mark.parametrize("name", CORE)
def test_bad_factors_are_refused_by_every_method(name: str) -> None:
    good, inputs = (torch.ones(4, 2), torch.ones(2, 3)), Inputs((1.0, 1.0), ("a", "b"), ("a", "b"))
    for bad, message in [
        ((torch.ones(4, 2), torch.full((2, 3), torch.nan)), "`layer` holds NaN"),
        ((torch.ones(4, 2), torch.ones(2, 5)), "4 x 3 in one adapter and 4 x 5"),
        ((torch.ones(4, 2), torch.ones(1, 3)), "factors of rank 2 and 1"),
    ]:
        with pytest.raises(InputError, match=message):
            list(
                METHODS[name].function(
                    [Factored("layer", (good, bad))], inputs, METHODS[name].read({})
                )
            )
    with pytest.raises(InputError, match="1 given for 2 adapters"):
        list(METHODS[name].function([Factored("layer", (good,))], inputs, METHODS[name].read({})))
