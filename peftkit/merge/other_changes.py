"""Changes that are no low-rank update: scaled inputs or outputs (IA3), and bottleneck networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from peftkit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scaling:
    """A weight times a number for each input or output; the numbers less 1, which changes nothing.

    So half of an adapter scales half as much, and none of it leaves the base alone.
    """

    values: Tensor
    inputs: bool
    """Whether it is inputs that are scaled."""
    turned: bool = False
    """Whether the weight lies as (in, out), as GPT-2's does."""


@dataclass(frozen=True, slots=True)
class Network:
    """`up(activation(down(x)))`, added to what a module gives; hidden units lie side by side."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    settings: tuple[tuple[str, object], ...]
    """What the configuration says of it: the activation, and where it stands."""

    @property
    def size(self) -> int:
        """Hidden units."""
        return int(self.down.shape[0])


def scale_scaling(change: Scaling, factor: float) -> Scaling:
    """The change times a number."""
    return replace(change, values=change.values * factor)


def join_scalings(one: Scaling, other: Scaling, name: str) -> Scaling:
    """The sum of two changes of one module.

    Raises:
        InputError: one scales inputs and the other outputs, or they are of different sizes.
    """
    if (one.inputs, one.turned) != (
        other.inputs,
        other.turned,
    ) or one.values.shape != other.values.shape:
        raise InputError(f"`{name}`: the adapters do not scale the same inputs or outputs")
    return replace(one, values=one.values + other.values)


def scale_network(change: Network, factor: float) -> Network:
    """The change times a number: what the network gives is, and what it computes inside is not."""
    return replace(change, up=change.up * factor, up_bias=change.up_bias * factor)


def join_networks(one: Network, other: Network, name: str) -> Network:
    """The sum of two changes of one module, as one network with the hidden units of both.

    Raises:
        InputError: they bend their inputs otherwise, stand elsewhere or are of different widths.
    """
    if one.settings != other.settings or one.up.shape[0] != other.up.shape[0]:
        raise InputError(
            f"`{name}`: the bottlenecks differ: {_listed(one)} and {_listed(other)}",
            hint="only bottlenecks with one activation and one place can be added",
        )
    return replace(
        one,
        down=torch.cat([one.down, other.down]),
        down_bias=torch.cat([one.down_bias, other.down_bias]),
        up=torch.cat([one.up, other.up], 1),
        up_bias=one.up_bias + other.up_bias,
    )


def _listed(network: Network) -> str:
    return ", ".join(f"{name} {value}" for name, value in network.settings)
