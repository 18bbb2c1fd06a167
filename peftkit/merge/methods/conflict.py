"""How much changes pull in opposite directions, entry by entry, before they are merged.

Of a large model every so many-th row says as much as all of them, in a fraction of the time that
the merge itself takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.merge.methods.consensus import add, weigh
from peftkit.merge.methods.stream import Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from peftkit.merge.methods.core import Pair
    from peftkit.merge.methods.stream import Stream

LOOKED_AT = 1 << 24
"""Entries of all layers together that are looked at, about; up to so many, all are."""


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


def spread_rows(changes: Mapping[str, Sequence[Pair]], most: int = LOOKED_AT) -> tuple[Layer, ...]:
    """Layers of low-rank changes by their factors, with as many rows as suffice to count signs.

    Every layer gives the same share of its rows, from the first to the last.
    """
    sizes = (each[0][0].shape[0] * each[0][1].shape[1] for each in changes.values())
    step = max(1, -(-sum(sizes) // most))
    return tuple(
        Layer.of_factors(name, [(up[::step], down) for up, down in each])
        for name, each in changes.items()
    )


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
