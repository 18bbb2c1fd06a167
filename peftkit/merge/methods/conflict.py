"""How much changes pull in opposite directions, entry by entry, before they are merged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.merge.methods.consensus import add, weigh

if TYPE_CHECKING:
    from collections.abc import Iterable

    from peftkit.merge.methods.stream import Layer, Stream


@dataclass(frozen=True, slots=True)
class SignConflict:
    """Of some entries: how many are contested, and how much of their size a sum cancels."""

    entries: int
    shared: int
    """Entries that at least two changes touch."""
    against: int
    """Entries that are pulled both ways."""
    mass: float
    """The sizes of all weighed entries."""
    net: float
    """The sizes of the entries of the sum."""

    @property
    def share(self) -> float:
        """Contested entries by those that at least two changes touch."""
        return self.against / self.shared if self.shared else 0.0

    @property
    def canceled(self) -> float:
        """Share of all sizes that the sum cancels: 0 where all agree, 1 where nothing is left."""
        return 1 - self.net / self.mass if self.mass else 0.0


def sign_conflicts(stream: Stream) -> dict[str, SignConflict]:
    """The conflict of the weighed changes in each layer."""
    return {layer.name: _of_layer(stream, layer) for layer in stream.layers}


def total(conflicts: Iterable[SignConflict]) -> SignConflict:
    """The conflict of several layers together."""
    all_of = list(conflicts)
    return SignConflict(
        sum(each.entries for each in all_of),
        sum(each.shared for each in all_of),
        sum(each.against for each in all_of),
        math.fsum(each.mass for each in all_of),
        math.fsum(each.net for each in all_of),
    )


def _of_layer(stream: Stream, layer: Layer) -> SignConflict:
    shared = against = 0
    masses: list[float] = []
    nets: list[float] = []
    for start, stop in stream.spans(layer):
        blocks = [stream.block(layer, each, start, stop) for each in range(len(stream.inputs))]
        weighed = weigh(blocks, stream.inputs.weights)
        up, down = (
            add([(each > 0).int() for each in weighed]),
            add([(each < 0).int() for each in weighed]),
        )
        shared += int((up + down > 1).sum())
        against += int(((up > 0) & (down > 0)).sum())
        masses.extend(add([each.abs() for each in weighed]).double().sum(1).tolist())
        nets.extend(add(weighed).abs_().double().sum(1).tolist())
    return SignConflict(layer.size, shared, against, math.fsum(masses), math.fsum(nets))
