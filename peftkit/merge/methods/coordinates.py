"""Entry-wise methods on the coordinates of low-rank changes, so that the result is low-rank too.

`knots` has one shared axis a row and the weight's own inputs as columns; `core` has shared axes on
both sides. Either way the coordinates hold everything: a weighted sum of them is the exact one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from peftkit.merge.methods.core import expand, shared
from peftkit.merge.methods.entry_wise import merge_layers
from peftkit.merge.methods.stream import Layer, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from peftkit.merge.methods.core import Pair, Space
    from peftkit.merge.methods.entry_wise import EntryWise
    from peftkit.merge.methods.in_core import Factored
    from peftkit.merge.methods.inputs import Inputs
    from peftkit.merge.methods.stream import Read

Axes = Literal["knots", "core"]


def merge_coordinates(
    axes: Axes, method: EntryWise, layers: Sequence[Factored], inputs: Inputs
) -> Iterator[tuple[str, Pair]]:
    """Every layer merged entry by entry along some axes, as factors."""
    spaces = {}
    for layer in layers:
        pairs = inputs.fit(layer.pairs, f"changes of `{layer.name}`")
        spaces[layer.name] = shared(pairs, layer.name)
    seen = [_seen(axes, name, space) for name, space in spaces.items()]
    stream = Stream.of(seen, inputs.sorted(), dtype=torch.float64)
    for name, merged in merge_layers(method, stream):
        space = spaces[name]
        yield name, (space.left, merged) if axes == "knots" else expand(space, merged)


def _seen(axes: Axes, name: str, space: Space) -> Layer:
    rows, columns = space.left.shape[1], space.right.shape[axes == "knots"]
    return Layer(name, rows, columns, tuple(_reader(axes, space, core) for core in space.cores))


def _reader(axes: Axes, space: Space, core: Tensor) -> Read:
    if axes == "core":
        return lambda start, stop: core[start:stop]
    # All rows at once: a product of some of them may be rounded in another way.
    return lambda start, stop: (core @ space.right)[start:stop]
