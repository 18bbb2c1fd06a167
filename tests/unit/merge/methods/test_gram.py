"""Merges from inner products alone: arcs, means on the sphere, and what agreement is worth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import geometric_slerp
from torch import Tensor

from peftkit.errors import InputError
from peftkit.merge.methods.catalog import METHODS
from peftkit.merge.methods.gram import (
    Karcher,
    gram_of_factors,
    gram_of_layer,
    karcher,
    model_stock,
    slerp,
)
from peftkit.merge.methods.inputs import Inputs
from peftkit.merge.methods.parameters import NoParameters
from peftkit.merge.methods.stream import Layer, Stream

PLAIN, LIMITS = NoParameters(), Karcher()
seeds = st.integers(0, 10_000)
shares = st.floats(0.05, 0.95)


def vectors(seed: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator, dtype=torch.float64)


def combined(multiples: tuple[float, ...], rows: Tensor) -> Tensor:
    return torch.tensor(multiples, dtype=torch.float64) @ rows


@given(seeds, shares)
@settings(max_examples=30)
def test_slerp_is_that_of_scipy_on_the_sphere(seed: int, share: float) -> None:
    rows = torch.nn.functional.normalize(vectors(seed, 2), dim=1)
    mine = combined(slerp(rows @ rows.T, (1 - share, share), PLAIN), rows)
    oracle = geometric_slerp(rows[0].numpy(), rows[1].numpy(), share)
    np.testing.assert_allclose(mine.numpy(), oracle, atol=1e-10)


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [2.0, 4.0]], [[1.0, 2.0], [0.0, 0.0]]])
def test_slerp_of_one_direction_is_a_straight_line(rows: list[list[float]]) -> None:
    both = torch.tensor(rows, dtype=torch.float64)
    assert slerp(both @ both.T, (3.0, 1.0), PLAIN) == (0.75, 0.25)


def test_there_is_no_arc_between_opposite_changes() -> None:
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    with pytest.raises(InputError, match="no shortest arc"):
        slerp(rows @ rows.T, (1.0, 1.0), PLAIN)
    with pytest.raises(InputError, match="no one mean"):
        karcher(rows @ rows.T, (1.0, 1.0), LIMITS)


@given(seeds, shares)
@settings(max_examples=30)
def test_the_mean_of_two_directions_is_on_the_arc_between_them(seed: int, share: float) -> None:
    rows = torch.nn.functional.normalize(vectors(seed, 2), dim=1)
    gram = rows @ rows.T
    mean = combined(karcher(gram, (1 - share, share), LIMITS), rows)
    arc = combined(slerp(gram, (1 - share, share), PLAIN), rows)
    torch.testing.assert_close(mean, arc, atol=1e-6, rtol=0)


@given(seeds)
@settings(max_examples=30)
def test_at_the_mean_all_directions_pull_evenly(seed: int) -> None:
    rows, weights = vectors(seed), (1.0, 2.0, 0.5)
    mean = combined(karcher(rows @ rows.T, weights, LIMITS), rows)
    lengths = rows.norm(dim=1)
    expected = float((torch.tensor(weights, dtype=torch.float64) * lengths).sum()) / sum(weights)
    assert float(mean.norm()) == pytest.approx(expected)
    unit, pulls = mean / mean.norm(), torch.zeros(6, dtype=torch.float64)
    for row, weight in zip(rows / lengths[:, None], weights, strict=True):
        angle = math.acos(float(row @ unit))
        pulls += weight * angle / math.sin(angle) * (row - (row @ unit) * unit)
    assert float(pulls.norm()) < 1e-6


@given(seeds, st.sampled_from([-2.0, 0.5, 3.0]))
@settings(max_examples=20)
def test_scaled_changes_are_multiplied_by_the_same(seed: int, factor: float) -> None:
    rows = vectors(seed)
    for method, told in ((karcher, LIMITS), (model_stock, PLAIN)):
        once = method(rows @ rows.T, (1.0, 1.0, 1.0), told)  # type: ignore[operator]
        again = method(rows @ rows.T * factor**2, (1.0, 1.0, 1.0), told)  # type: ignore[operator]
        assert again == pytest.approx(once, abs=1e-7)


@pytest.mark.parametrize("name", ["karcher", "model-stock"])
@given(seeds, st.permutations([0, 1, 2]))
@settings(max_examples=20)
def test_the_order_of_inputs_does_not_matter(name: str, seed: int, order: list[int]) -> None:
    rows, method = vectors(seed), METHODS[name]
    weights = torch.tensor([1.0, 2.0, 0.5] if method.weights == "positive" else [1.0] * 3)
    once = method.function(rows @ rows.T, weights.tolist(), method.read({}))
    mixed = rows[order]
    again = method.function(mixed @ mixed.T, weights[order].tolist(), method.read({}))
    assert again == pytest.approx([once[place] for place in order], abs=1e-7)


def test_a_change_that_is_nothing_has_no_direction() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert karcher(rows @ rows.T, (1.0, 1.0), LIMITS) == pytest.approx((0.5, 0.0))
    nothing = torch.zeros(2, 2, dtype=torch.float64)
    assert karcher(nothing, (1.0, 1.0), LIMITS) == (0.0, 0.0)
    assert model_stock(nothing, (1.0, 1.0), PLAIN) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("cosine", "multiple"), [(1.0, 0.5), (0.0, 0.0), (-1.0, 0.0), (0.5, 1 / 3)]
)
def test_model_stock_shortens_the_mean_by_disagreement(cosine: float, multiple: float) -> None:
    gram = torch.tensor([[4.0, 6 * cosine], [6 * cosine, 9.0]], dtype=torch.float64)
    assert model_stock(gram, (1.0, 1.0), PLAIN) == pytest.approx((multiple, multiple))


def test_inner_products_are_those_of_the_dense_changes() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (
            torch.randn(5, rank, generator=generator, dtype=torch.float64),
            torch.randn(rank, 4, generator=generator, dtype=torch.float64),
        )
        for rank in (1, 2, 3)
    ]
    dense = [up @ down for up, down in pairs]
    oracle = torch.tensor([[float((a * b).sum()) for a in dense] for b in dense]).double()
    torch.testing.assert_close(gram_of_factors(pairs), oracle, atol=1e-5, rtol=1e-5)
    inputs = Inputs((1.0, 1.0, 1.0), ("a", "b", "c"), ("a", "b", "c"))
    layer = Layer.of("layer", dense)
    stream = Stream.of([layer], inputs, entries=4, dtype=torch.float64)
    torch.testing.assert_close(gram_of_layer(stream, stream.layers[0]), gram_of_factors(pairs))
