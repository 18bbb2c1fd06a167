"""A number that is not finite is found wherever it stands, and nothing else is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from peftkit.base.finite import first_not_finite

FORMATS = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@given(place=some.integers(0, 11), before=some.integers(0, 2))
def test_the_first_one_is_named(place: int, before: int, odd: float, dtype: torch.dtype) -> None:
    sound = torch.linspace(-400, 400, 12).reshape(3, 4)
    bad = sound.clone()
    bad.view(-1)[place] = odd
    tensors = [*(("sound", sound.to(dtype)) for _ in range(before)), ("bad", bad.to(dtype))]
    assert first_not_finite([*tensors, ("also bad", bad)]) == "bad"


def test_sound_tensors_of_any_kind_pass() -> None:
    largest = torch.tensor([torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max])
    tensors = [largest, torch.zeros(0), torch.tensor(1.0), torch.arange(3), torch.tensor([True])]
    tensors += [torch.empty(2, device="meta"), torch.full((2,), 448.0).to(torch.float8_e4m3fn)]
    assert first_not_finite((str(number), tensor) for number, tensor in enumerate(tensors)) is None
    assert first_not_finite([]) is None
