"""Averages of weights over a run: an exponential one that is kept as it goes, or over saves.

The factors of a low-rank update are averaged each, not their product; along one run they stay near
each other, and what the average is worth is measured on the same rows as everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter


@torch.no_grad()
def take_in(mean: dict[str, Tensor], parameters: Mapping[str, Parameter], decay: float) -> None:
    """Let a mean keep `decay` of what it was, and take the rest from the weights as they are.

    It begins with the first weights that it sees, and is in float32 whatever these are in.
    """
    for name, parameter in parameters.items():
        if name in mean:
            mean[name].lerp_(parameter.detach().float(), 1 - decay)
        else:
            mean[name] = parameter.detach().to(torch.float32, copy=True)


@torch.no_grad()
def put(parameters: Mapping[str, Parameter], weights: Mapping[str, Tensor]) -> None:
    """Give the parameters these numbers, in the places they have."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def mean_of_files(paths: Sequence[Path], names: Iterable[str]) -> dict[str, Tensor]:
    """The mean of each tensor over files that all have it, added in float64 one after another."""
    found = {}
    for name in names:
        values = [_read(path, name) for path in paths]
        total = torch.stack([value.double() for value in values]).sum(dim=0)
        found[name] = (total / len(paths)).to(values[0].dtype)
    return found


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        value: Tensor = file.get_tensor(name)
    return value


def averaged_steps(every: int, count: int, end: int) -> list[int]:
    """The end of a run and the saves at multiples of `every` before it, at most `count` in all."""
    before = range(every, end, every)
    return [*before[max(0, len(before) - (count - 1)) :], end]
