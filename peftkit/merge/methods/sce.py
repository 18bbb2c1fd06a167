"""SCE: keep the entries that differ most, weigh each change by its squares, elect signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.merge.methods.consensus import Consensus, Elect, add
from peftkit.merge.methods.thin import counts
from peftkit.merge.methods.threshold import largest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from peftkit.merge.methods.entry_wise import MergeRows
    from peftkit.merge.methods.stream import Layer, Stream

_COMBINE = Consensus("weighted_mean", Elect(weights="after", tie="plus"))


@dataclass(frozen=True, slots=True)
class SelectCalculateErase:
    """The weights of the inputs are of no account: every layer has weights of its own."""

    keep: float
    scaling: float = 1.0

    def prepare(self, stream: Stream) -> Callable[[Layer], MergeRows]:
        """Nothing to know of the whole model."""

        def of_layer(layer: Layer) -> MergeRows:
            read = self._selected(stream, layer)
            weights = _energies(read(start, stop) for start, stop in stream.spans(layer))
            return lambda start, stop: _COMBINE(read(start, stop), weights) * self.scaling

        return of_layer

    def _selected(self, stream: Stream, layer: Layer) -> Callable[[int, int], list[Tensor]]:
        def read(start: int, stop: int) -> list[Tensor]:
            count = len(stream.inputs)
            return [stream.block(layer, number, start, stop) for number in range(count)]

        def variances() -> Iterator[Tensor]:
            return (_variance(read(start, stop)) for start, stop in stream.spans(layer))

        _, kept = counts(self.keep, 0.0, layer.size)
        bound = largest(variances, kept, layer.size)

        def selected(start: int, stop: int) -> list[Tensor]:
            blocks = read(start, stop)
            chosen = bound.keeps(_variance(blocks), start * layer.columns)
            return [block * chosen for block in blocks]

        return selected


def _variance(blocks: Sequence[Tensor]) -> Tensor:
    mean = add(blocks) / len(blocks)
    return add([(block - mean).square_() for block in blocks]) / len(blocks)


def _energies(blocks: Iterator[Sequence[Tensor]]) -> tuple[float, ...]:
    """The share of each input of all squares; rows are summed exactly, whatever the blocks."""
    rows: list[list[float]] = []
    for several in blocks:
        rows = rows or [[] for _ in several]
        for sums, block in zip(rows, several, strict=True):
            sums.extend(block.double().square_().sum(1).tolist())
    energies = [math.fsum(sums) for sums in rows]
    whole = math.fsum(energies)
    return tuple(each / whole if whole else 1.0 / len(energies) for each in energies)
