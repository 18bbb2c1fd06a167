"""The bound between the largest entries and the rest is exact, whatever the blocks and the ties."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peftkit.merge.methods.chance import uniform
from peftkit.merge.methods.threshold import FEW, HELD, largest

DTYPES = st.sampled_from([torch.float32, torch.float64])
# Few different values make many ties; tiny and huge ones differ in every digit of their bits.
VALUES = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.0, 1.0000001]),
)


@pytest.mark.parametrize("times", [1, FEW])  # sorted, or found by histograms
@given(st.lists(VALUES, min_size=2, max_size=40), st.floats(0, 1), st.floats(0.1, 1), DTYPES)
def test_exactly_the_first_largest_are_kept(
    times: int, values: list[float], share: float, cut: float, dtype: torch.dtype
) -> None:
    whole = torch.tensor(values, dtype=dtype).repeat(times)
    count, size = round(share * len(whole)), math.ceil(cut * len(whole))

    def blocks() -> Iterator[Tensor]:
        return iter(whole.split(size))

    bound = largest(blocks, count, len(whole))
    pieces = [bound.keeps(block, place * size) for place, block in enumerate(blocks())]
    wanted = torch.zeros(len(whole), dtype=torch.bool)
    wanted[np.argsort(-whole.abs().numpy(), kind="stable")[:count]] = True
    assert torch.equal(torch.cat(pieces), wanted)


def test_blocks_that_change_between_two_passes_are_a_bug() -> None:
    passes = iter([*[torch.ones(4)] * 3, torch.zeros(4)])
    with pytest.raises(RuntimeError, match="changed between two passes"):
        largest(lambda: iter([next(passes)]), 2, HELD + 1)


def test_what_is_held_and_what_is_read_again_have_one_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.randn(3 * FEW, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    found = [largest(lambda: iter(values.split(500)), FEW, len(values))]
    monkeypatch.setattr("peftkit.merge.methods.threshold.HELD", 0)
    found.append(largest(lambda: iter(values.split(500)), FEW, len(values)))
    assert found[0] == found[1]
    assert found[0].last < len(values)


@given(st.integers(0, 50), st.integers(1, 50))
def test_random_numbers_are_the_same_wherever_a_block_begins(first: int, count: int) -> None:
    whole = uniform(3, "digest", "layer", 0, 100)
    assert torch.equal(uniform(3, "digest", "layer", first, count), whole[first : first + count])
    assert float(whole.min()) >= 0
    assert float(whole.max()) < 1


@pytest.mark.parametrize(
    "other", [(4, "digest", "layer"), (3, "digest2", "layer"), (3, "digest", "layer2")]
)
def test_random_numbers_differ_by_seed_adapter_and_tensor(other: tuple[int, str, str]) -> None:
    one, another = uniform(3, "digest", "layer", 0, 100), uniform(*other, 0, 100)
    assert int((one == another).sum()) == 0
    assert abs(float(torch.corrcoef(torch.stack([one, another]))[0, 1])) < 0.3
