"""AdamW over the parameters that train, in groups that say what decays and how fast it learns.

Flat, the parameters of a group are views into one buffer, and so are their gradients: an update,
the norm of all gradients and their exchange between processes are a few kernels each, however many
small matrices an adapter has. Plain, each parameter is on its own. Both take the same updates; what
the optimizer remembers is read and written parameter by parameter, so a checkpoint fits both.
"""

from __future__ import annotations

from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Parameter

from peftkit.train.paged import PagedAdamW, moment_like

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

BETAS = (0.9, 0.999)
FACTOR = "rate_factor"
"""Where a group keeps how many times the learning rate of the step it learns at."""
ALIGNED = 64
"""A parameter's place in a buffer is a multiple of this, as kernels like it."""


def make_optimizer(
    parameters: Mapping[str, Parameter],
    *,
    weight_decay: float,
    flat: bool = True,
    paged: bool = False,
    factors: Mapping[str, float] = MappingProxyType({}),
    turns: Mapping[str, int] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """AdamW whose learning rate the loop sets; vectors (biases, norms) never decay.

    Args:
        parameters: what trains, by name.
        weight_decay: of matrices.
        flat: whether the parameters of a group share one buffer.
        paged: whether a GPU that runs out of memory may move the moments to the host.
        factors: how many times the learning rate of the step a parameter learns at, by name; 1
            where a name is left out. Parameters of one factor share a group.
        turns: which parameters begin to learn together, by name; 0 where a name is left out.
    """

    def kind(name: str) -> tuple[bool, float, int]:
        return is_vector(parameters[name]), factors.get(name, 1.0), turns.get(name, 0)

    groups = []
    for (vectors, factor, _), names in groupby(sorted(parameters, key=kind), key=kind):
        own = [parameters[name] for name in names]
        groups.append(
            {
                "params": _lay_end_to_end(own) if flat else own,
                "weight_decay": 0.0 if vectors else weight_decay,
                FACTOR: factor,
            }
        )
    if paged:
        return PagedAdamW(groups, betas=BETAS)
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=flat)


def is_vector(parameter: Tensor) -> bool:
    """Whether a parameter is a bias or a norm, which never decays."""
    return parameter.ndim < 2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next update take place at this learning rate, times the factor of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)


def freeze(optimizer: torch.optim.Optimizer, parameters: Iterable[Parameter]) -> None:
    """Let parameters stand still until `thaw`; nothing decays them, and no gradient is computed.

    They must be whole turns of `make_optimizer`, because those of a buffer are updated together.
    """
    for parameter in parameters:
        leaf = _leaf_of(optimizer, parameter)
        for each in (parameter, leaf):
            each.grad = None
            each.requires_grad = False
        optimizer.state.pop(leaf, None)


def thaw(optimizer: torch.optim.Optimizer, parameters: Iterable[Parameter]) -> None:
    """Let parameters learn that stood still; what the optimizer remembers of them starts now."""
    for parameter in parameters:
        leaf = _leaf_of(optimizer, parameter)
        parameter.requires_grad_()
        if leaf is parameter:
            continue
        leaf.requires_grad_()
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
        parameter.grad = _part(leaf.grad, leaf, parameter)


def read_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter]
) -> dict[str, Tensor]:
    """What the optimizer remembers, as `<parameter>:<what>`; nothing before the first update."""
    found = {}
    for name, parameter in parameters.items():
        leaf = _leaf_of(optimizer, parameter)
        for kind, value in optimizer.state.get(leaf, {}).items():
            found[f"{name}:{kind}"] = value if value.ndim == 0 else _part(value, leaf, parameter)
    return found


@torch.no_grad()
def write_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Parameter],
    moments: Mapping[str, Tensor],
) -> None:
    """Let the optimizer remember what `read_moments` gave, bit for bit."""
    optimizer.state.clear()
    for key, value in moments.items():
        name, _, kind = key.rpartition(":")
        leaf = _leaf_of(optimizer, parameters[name])
        state = optimizer.state[leaf]
        if value.ndim == 0:
            state[kind] = value.clone()  # of its own, not of the file
            continue
        if kind not in state:
            paged = isinstance(optimizer, PagedAdamW)
            state[kind] = moment_like(leaf) if paged else torch.zeros_like(leaf)
        _part(state[kind], leaf, parameters[name]).copy_(value)


def _lay_end_to_end(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Turn parameters and their gradients into views of one buffer for each device and dtype."""

    def kind(parameter: Parameter) -> tuple[str, str]:
        return str(parameter.device), str(parameter.dtype)

    return [_join(list(own)) for _, own in groupby(sorted(parameters, key=kind), key=kind)]


def _join(parameters: Sequence[Parameter]) -> Parameter:
    starts = list(_place(parameters))
    buffer = Parameter(parameters[0].new_zeros(starts.pop()))
    buffer.grad = torch.zeros_like(buffer)
    with torch.no_grad():
        for parameter, start in zip(parameters, starts, strict=True):
            place = slice(start, start + parameter.numel())
            buffer.data[place].copy_(parameter.data.flatten())
            parameter.data = buffer.data[place].view_as(parameter)
            parameter.grad = buffer.grad[place].view_as(parameter)
    return buffer


def _place(parameters: Sequence[Parameter]) -> Iterator[int]:
    """Where each parameter starts, and at last where the buffer ends."""
    at = 0
    for parameter in parameters:
        yield at
        at += -(-parameter.numel() // ALIGNED) * ALIGNED
    yield at


def _leaf_of(optimizer: torch.optim.Optimizer, parameter: Parameter) -> Any:
    """What the optimizer updates in place of a parameter: the buffer that it is a view of."""
    storage = parameter.untyped_storage().data_ptr()
    leaves = (leaf for group in optimizer.param_groups for leaf in group["params"])
    return next(leaf for leaf in leaves if leaf.untyped_storage().data_ptr() == storage)


def _part(values: Tensor, leaf: Tensor, parameter: Parameter) -> Tensor:
    """A parameter's part of a tensor laid out like its leaf."""
    start = parameter.storage_offset() - leaf.storage_offset()
    return values.view(-1)[start : start + parameter.numel()].view(parameter.shape)
