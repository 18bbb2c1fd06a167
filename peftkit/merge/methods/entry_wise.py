"""Merge entry by entry, in streams of row blocks: thin every change, combine, scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from peftkit.merge.methods.consensus import Consensus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.merge.methods.consensus import Combine
    from peftkit.merge.methods.stream import Layer, Stream
    from peftkit.merge.methods.thin import Enter, Thinning

MergeRows = Callable[[int, int], Tensor]
"""The merged rows from `start` to `stop` of the layer that was entered."""


class EntryWise(Protocol):
    """A method that looks at each entry of all changes by itself, once its bounds are known."""

    def prepare(self, stream: Stream) -> Callable[[Layer], MergeRows]:
        """Take the statistics of the model; what comes back takes those of a layer."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Most entry-wise methods: what is kept of a change, and how the changes become one."""

    thin: Thinning
    combine: Combine
    scaling: float = 1.0

    def prepare(self, stream: Stream) -> Callable[[Layer], MergeRows]:
        """Find what the whole model decides: bounds of sizes, and the sign of ties."""
        enter, combine = self.thin.prepare(stream), self.combine
        if isinstance(combine, Consensus) and combine.elect.tie == "majority":
            combine = replace(combine, even=_majority(stream, enter, combine))
        weights = stream.inputs.weights

        def of_layer(layer: Layer) -> MergeRows:
            read = _thinned(stream, enter, layer)
            return lambda start, stop: combine(read(start, stop), weights) * self.scaling

        return of_layer


def merge_blocks(method: EntryWise, stream: Stream) -> Iterator[tuple[Layer, int, Tensor]]:
    """Every layer's merged rows, block by block: the layer, the first row, the rows."""
    of_layer = method.prepare(stream)
    for layer in stream.layers:
        merge = of_layer(layer)
        for start, stop in stream.spans(layer):
            yield layer, start, merge(start, stop)


def merge_layers(method: EntryWise, stream: Stream) -> Iterator[tuple[str, Tensor]]:
    """Every layer merged, one at a time, as rows and columns."""
    of_layer = method.prepare(stream)
    for layer in stream.layers:
        merge, whole = of_layer(layer), torch.empty(layer.rows, layer.columns, dtype=stream.dtype)
        for start, stop in stream.spans(layer):
            whole[start:stop] = merge(start, stop)
        yield layer.name, whole


def _thinned(stream: Stream, enter: Enter, layer: Layer) -> Callable[[int, int], list[Tensor]]:
    thins = enter(layer)

    def read(start: int, stop: int) -> list[Tensor]:
        return [
            thin(stream.block(layer, number, start, stop), start)
            for number, thin in enumerate(thins)
        ]

    return read


def _majority(stream: Stream, enter: Enter, combine: Consensus) -> float:
    """The sign that most elected entries of the model have; 0 where they are even."""
    total = 0
    for layer in stream.layers:
        read = _thinned(stream, enter, layer)
        for start, stop in stream.spans(layer):
            votes = combine.votes(read(start, stop), stream.inputs.weights)
            total += int((votes > 0).sum()) - int((votes < 0).sum())
    return math.copysign(1, total) if total else 0.0
