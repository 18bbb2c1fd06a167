"""Merges with measurements: they solve the problem that they say they solve, or refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peftkit.errors import InputError
from peftkit.merge.methods.from_data import RegMean, fisher, greedy_soup, regmean

seeds = st.integers(0, 10_000)
WEIGHTS = (1.0, 0.5, 2.0)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds)
@settings(max_examples=20)
def test_fisher_is_where_the_weighed_squares_are_least(seed: int) -> None:
    changes, importances = drawn(seed, 3, 4, 5), drawn(seed + 1, 3, 4, 5).square()
    merged = fisher(list(changes), list(importances), WEIGHTS).requires_grad_()
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)[:, None, None]
    (weights * importances * (merged - changes).square()).sum().backward()
    assert merged.grad is not None
    assert float(merged.grad.abs().max()) < 1e-10


def test_fisher_with_even_importances_is_the_mean() -> None:
    changes = list(drawn(0, 2, 3, 4))
    for importance in (torch.ones(3, 4), torch.zeros(3, 4)):
        merged = fisher(changes, [importance, importance], (1.0, 3.0))
        torch.testing.assert_close(merged, 0.25 * changes[0] + 0.75 * changes[1])


def test_fisher_takes_an_entry_from_the_only_one_it_matters_to() -> None:
    merged = fisher(
        [torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0])],
        [torch.tensor([0.0, 1e-30]), torch.tensor([3.0, 0.0])],
        (1.0, 1.0),
    )
    assert merged.tolist() == [5.0, 2.0]


@given(seeds)
@settings(max_examples=20)
def test_regmean_is_least_squares_on_everyones_inputs(seed: int) -> None:
    ups, downs = drawn(seed, 3, 6, 2), drawn(seed + 1, 3, 2, 4)
    inputs = drawn(seed + 2, 3, 9, 4)
    grams = [rows.T @ rows for rows in inputs]
    up, down = regmean(
        list(zip(ups, downs, strict=True)), grams, WEIGHTS, RegMean(correlations=1.0)
    )
    roots = torch.tensor(WEIGHTS, dtype=torch.float64).sqrt()[:, None, None]
    outputs = inputs @ (ups @ downs).transpose(1, 2)
    oracle = torch.linalg.lstsq((roots * inputs).flatten(0, 1), (roots * outputs).flatten(0, 1))
    torch.testing.assert_close(up @ down, oracle.solution.T, atol=1e-8, rtol=1e-8)
    assert up.shape[1] == 6  # the sum of the ranks: it is an adapter still


def test_regmean_without_correlations_weighs_every_input_by_itself() -> None:
    changes, inputs = drawn(1, 2, 3, 4), drawn(2, 2, 9, 4)
    grams = [rows.T @ rows for rows in inputs]
    pairs = [(change, torch.eye(4)) for change in changes]
    up, down = regmean(pairs, grams, (1.0, 1.0), RegMean(correlations=0.0))
    sizes = torch.stack([gram.diagonal() for gram in grams])[:, None]
    torch.testing.assert_close(up @ down, (changes * sizes).sum(0) / sizes.sum(0))


def test_regmean_leaves_alone_what_no_input_reaches() -> None:
    gram = torch.diag(torch.tensor([2.0, 0.0]))
    pairs = [(torch.ones(3, 2), torch.eye(2)), (3 * torch.ones(3, 2), torch.eye(2))]
    up, down = regmean(pairs, [gram, gram], (1.0, 1.0), RegMean())
    expected = torch.tensor([2.0, 0.0], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(up @ down, expected)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
@given(seeds, st.permutations([0, 1, 2]))
@settings(max_examples=10)
def test_the_order_does_not_matter(method: str, seed: int, order: list[int]) -> None:
    changes, square = drawn(seed, 3, 4, 5), drawn(seed + 1, 3, 5, 5)

    def merged(places: list[int]) -> Tensor:
        weights = [WEIGHTS[place] for place in places]
        if method == "fisher":
            return fisher(
                [changes[p] for p in places], [square[p, :4].square() for p in places], weights
            )
        pairs = [(changes[place], torch.eye(5)) for place in places]
        up, down = regmean(pairs, [square[p].T @ square[p] for p in places], weights, RegMean())
        return up @ down

    torch.testing.assert_close(merged(order), merged([0, 1, 2]), atol=1e-9, rtol=1e-9)


def test_a_greedy_soup_leaves_out_what_makes_it_worse() -> None:
    seen = []

    def score(weights: tuple[float, ...]) -> float:
        seen.append(weights)
        return -abs(
            math.fsum(w * value for w, value in zip(weights, (4.0, 9.0, -6.0, 2.0), strict=True))
            - 3
        )

    soup = greedy_soup(4, score)
    assert soup.weights == (0.5, 0.0, 0.0, 0.5)
    assert soup.score == 0
    assert soup.tried == ((0, -1.0, True), (3, 0.0, True), (1, -2.0, False), (2, -3.0, False))
    assert len(seen) == 7  # each alone, then one more for each but the best


def test_a_soup_keeps_what_makes_it_no_worse() -> None:
    assert greedy_soup(3, lambda _: 1.0).weights == (1 / 3, 1 / 3, 1 / 3)
    assert greedy_soup(1, lambda _: 1.0).weights == (1.0,)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="is NaN"):
        greedy_soup(2, lambda _: math.nan)


@pytest.mark.parametrize(
    ("importances", "message"),
    [
        ([torch.ones(2, 3), torch.ones(3, 2)], r"importances of shape \(3, 2\)"),
        ([torch.ones(2, 3), -torch.ones(2, 3)], "at least 0"),
        ([torch.ones(2, 3), torch.full((2, 3), math.nan)], "at least 0"),
        ([torch.ones(2, 3)], "2 changes, 1 measurements and 2 weights"),
    ],
)
def test_bad_importances_are_refused(importances: list[Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fisher([torch.ones(2, 3)] * 2, importances, (1.0, 1.0))


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.eye(2), r"shape \(2, 2\) for a layer with 3 inputs"),
        (torch.ones(3, 3).triu(), "symmetric"),
        (torch.full((3, 3), math.nan), "symmetric matrix of finite numbers"),
    ],
)
def test_bad_activations_are_refused(gram: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        regmean([(torch.ones(4, 1), torch.ones(1, 3))], [gram], (1.0,), RegMean())


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_weights_of_measured_merges_are_positive(weight: float) -> None:
    with pytest.raises(InputError, match="more than 0"):
        fisher([torch.ones(2)] * 2, [torch.ones(2)] * 2, (1.0, weight))
    with pytest.raises(InputError, match="at least one change"):
        fisher([], [], ())
