"""Methods put to adapters: the laws that hold between them, on factors as adapters have them."""

from typing import Any

import pytest
import torch

from peftkit.errors import InputError, RecipeError
from peftkit.merge.combine import combine, measure_conflict
from peftkit.merge.delta import Delta
from peftkit.merge.low_rank import LowRank
from peftkit.merge.methods.catalog import METHODS, find_method
from peftkit.merge.methods.inputs import Inputs

SHAPES = {"layers.0.q": (12, 8, "linear"), "layers.1.q": (8, 12, "conv1d")}


def draw(rank: int, seed: int, names: tuple[str, ...] = tuple(SHAPES)) -> Delta:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    low = {
        n: LowRank(numbers(SHAPES[n][0], rank), numbers(rank, SHAPES[n][1]), SHAPES[n][2])
        for n in names
    }
    return Delta(low=low, facts={"base": "org/base"})


def merge(name: str, deltas: list[Delta], weights: tuple[float, ...], **told: Any) -> Delta:
    letters = tuple("abcdef"[: len(deltas)])
    return combine(find_method(name), told, deltas, Inputs(weights, letters, letters))


def dense(delta: Delta) -> dict[str, torch.Tensor]:
    whole = {name: change.dense() for name, change in delta.low.items()}
    return whole | {n.removesuffix(".weight"): each.double() for n, each in delta.dense.items()}


@pytest.mark.parametrize("name", ["sum", "task-arithmetic", "core", "knots"])
def test_linear_methods_are_the_weighted_sum(name: str) -> None:
    one, other = draw(2, 0), draw(3, 1, ("layers.1.q",))
    found = dense(merge(name, [one, other], (0.5, -2.0)))
    wanted = dense(0.5 * one - 2 * other)
    assert found.keys() == wanted.keys()
    for module, change in found.items():
        assert torch.allclose(change, wanted[module], atol=1e-5), module


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.kind != "data"])
def test_every_method_merges_two_adapters_of_different_ranks(name: str) -> None:
    found = merge(name, [draw(2, 0), draw(3, 1)], (1.0, 1.0))
    for module, change in dense(found).items():
        out, into, layer = SHAPES[module]
        assert change.shape == ((out, into) if layer == "linear" else (into, out))
        assert torch.isfinite(change).all()
        assert float(change.norm()) > 0
    small = found.compress(rank=3)
    assert all(change.rank <= 3 for change in small.low.values())
    assert {n: each.layer for n, each in small.low.items()} == {n: s[2] for n, s in SHAPES.items()}


def test_slerp_sees_the_whole_change_of_an_adapter() -> None:
    one, other = draw(2, 0), draw(2, 1)
    found = merge("slerp", [one, other], (1.0, 1.0))
    angle = torch.acos(torch.tensor(one.cosine(other)))
    factor = float(torch.sin(angle / 2) / torch.sin(angle))
    wanted = dense(factor * one + factor * other)
    for module, change in dense(found).items():
        assert torch.allclose(change, wanted[module], atol=1e-9)


def test_what_pulls_both_ways_is_counted() -> None:
    one = draw(2, 0)
    opposite = measure_conflict([one, -one], Inputs((1.0, 1.0), ("a", "b"), ("a", "b")))
    assert opposite.share == 1
    assert opposite.canceled == pytest.approx(1)
    alike = measure_conflict([one, one], Inputs((1.0, 1.0), ("a", "b"), ("a", "b")))
    assert alike.share == 0
    assert alike.canceled == pytest.approx(0)


def test_what_a_method_knows_nothing_of_is_refused() -> None:
    whole = Delta(dense={"layers.0.q.weight": torch.ones(12, 8)})
    with pytest.raises(InputError, match="`ties` merges low-rank changes, and `b` has dense"):
        merge("ties", [draw(2, 0), whole], (1.0, 1.0))
    with pytest.raises(RecipeError, match="needs data that a merge of adapters alone"):
        merge("fisher", [draw(2, 0), draw(2, 1)], (1.0, 1.0))
    with pytest.raises(RecipeError, match="expected exactly 2 adapters, got 1"):
        merge("slerp", [draw(2, 0)], (1.0,))
    low = {"layers.0.q": LowRank(torch.ones(3, 1).double(), torch.ones(1, 8).double())}
    with pytest.raises(InputError, match="12 x 8"):
        merge("core", [draw(2, 0), Delta(low=low)], (1.0, 1.0))
