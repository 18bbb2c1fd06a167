"""Laws of changes in factors: sums, gauges, ranks and what a cut costs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peftkit.errors import InputError
from peftkit.merge.low_rank import (
    LowRank,
    decompose,
    effective_rank,
    join,
    lost,
    multiply,
    overlap,
    rank_for,
    rebuild,
    scale,
)

Sizes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))


def draw(out: int, into: int, rank: int, seed: int, layer: str = "linear") -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return LowRank(up, torch.randn(rank, into, generator=generator, dtype=torch.float64), layer)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() <= 1e-10 * (1 + other.norm()))


@given(Sizes, st.floats(-3, 3), st.sampled_from(["linear", "conv1d", "embedding"]))
def test_sums_and_products_are_those_of_the_whole_matrices(
    sizes: tuple[int, int, int, int], factor: float, layer: str
) -> None:
    out, into, one_rank, other_rank = sizes
    one, other = draw(out, into, one_rank, 0, layer), draw(out, into, other_rank, 1, layer)
    total = join(scale(one, factor), other, "q")
    assert close(total.dense(), factor * one.dense() + other.dense())
    assert math.isclose(
        multiply(one, other), float((one.dense() * other.dense()).sum()), abs_tol=1e-9
    )


@given(Sizes)
def test_factors_that_are_turned_are_the_same_change(sizes: tuple[int, int, int, int]) -> None:
    out, into, rank, _ = sizes
    change = draw(out, into, rank, 0)
    turn = torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64))[0] * 3
    turned = LowRank(change.up @ turn, torch.linalg.inv(turn) @ change.down)
    one, other = decompose(change), decompose(turned)
    assert torch.allclose(one.values, other.values)
    whole = len(one.values)
    assert close(rebuild(one, whole, "linear").dense(), change.dense())
    assert close(rebuild(other, whole, "linear").dense(), change.dense())


@given(Sizes, st.integers(0, 5))
def test_a_cut_costs_what_is_predicted(sizes: tuple[int, int, int, int], keep: int) -> None:
    out, into, one_rank, other_rank = sizes
    total = join(draw(out, into, one_rank, 0), draw(out, into, other_rank, 1), "q")
    spectrum = decompose(total)
    keep = min(keep, len(spectrum.values))
    found = rebuild(spectrum, keep, "linear").dense()
    missing = float((total.dense() - found).square().sum())
    assert math.isclose(missing, lost(spectrum, keep), rel_tol=1e-6, abs_tol=1e-9)
    assert math.isclose(lost(spectrum, 0), float(total.dense().square().sum()), rel_tol=1e-9)
    best = torch.linalg.svdvals(total.dense())[keep:].square().sum()  # Eckart and Young
    assert math.isclose(missing, float(best), rel_tol=1e-6, abs_tol=1e-9)


@given(Sizes)
def test_what_cancels_has_no_rank(sizes: tuple[int, int, int, int]) -> None:
    out, into, rank, _ = sizes
    change = draw(out, into, rank, 0)
    nothing = decompose(join(change, scale(change, -1.0), "q"))
    assert len(nothing.values) == 0
    assert effective_rank(nothing) == 0
    assert overlap(nothing, decompose(change)) == 0
    doubled = decompose(join(change, change, "q"))
    assert len(doubled.values) == min(out, into, rank)


def test_energy_says_how_many_directions_stay() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 0.1], dtype=torch.float64)
    change = LowRank(torch.eye(6, 4, dtype=torch.float64) * values, torch.eye(4, 5).double())
    spectrum = decompose(change)
    squares = [9, 4, 1, 0.01]
    for rank in range(1, 5):
        share = sum(squares[:rank]) / sum(squares)
        assert rank_for(spectrum, share) == rank
        assert rank_for(spectrum, min(share + 1e-6, 1.0)) == min(rank + 1, 4)


def test_equal_directions_are_counted_and_compared() -> None:
    one, other = torch.eye(8, 3).double(), torch.eye(8, 8)[:, 2:5].double()
    into = torch.eye(3, 8).double()
    first, second = decompose(LowRank(one, into)), decompose(LowRank(other, into))
    assert effective_rank(first) == pytest.approx(3)
    assert overlap(first, second) == pytest.approx(1 / 3)
    assert overlap(first, first) == pytest.approx(1)


def test_changes_of_different_matrices_are_no_sum() -> None:
    with pytest.raises(InputError, match=r"`q` is 4 x 3 \(linear\) in one adapter and 4 x 2"):
        join(draw(4, 3, 1, 0), draw(4, 2, 1, 0), "q")
