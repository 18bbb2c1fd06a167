"""Changes of weights as blocks of rows, so that no method holds more than a few blocks.

A block holds whole rows. Where a block begins decides nothing: statistics of a whole tensor or a
whole model are exact and taken before the first block is merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peftkit.merge.methods.core import Pair
    from peftkit.merge.methods.inputs import Inputs

Read = Callable[[int, int], Tensor]
"""Rows `start` to `stop` of a change."""
BLOCK_ENTRIES = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight, as rows and columns, and how to read what each input changes of it."""

    name: str
    rows: int
    columns: int
    read: tuple[Read, ...]
    """One for each input; an input that leaves the weight alone gives zeros."""

    @staticmethod
    def of(name: str, changes: Sequence[Tensor]) -> Layer:
        """Changes that are in memory; a vector is one row, and a stack of matrices has long rows.

        Raises:
            InputError: they differ in shape.
        """
        shapes = [tuple(change.shape) for change in changes]
        for shape in shapes:
            if shape != shapes[0]:
                raise InputError(
                    f"`{name}` has shape {shapes[0]} in one adapter and {shape} in another",
                    hint="only changes of one base can be merged",
                )
        rows = shapes[0][0] if len(shapes[0]) > 1 else 1
        columns = math.prod(shapes[0][1:] if len(shapes[0]) > 1 else shapes[0])
        flat = [change.reshape(rows, columns) for change in changes]
        return Layer(name, rows, columns, tuple(map(_reader, flat)))

    @staticmethod
    def of_factors(name: str, pairs: Sequence[Pair]) -> Layer:
        """Low-rank changes, of which only the rows that are read become dense.

        Rows may be rounded in another way when other rows are read with them.
        """
        rows, columns = pairs[0][0].shape[0], pairs[0][1].shape[1]
        return Layer(name, rows, columns, tuple(map(_multiplier, pairs)))

    @property
    def size(self) -> int:
        """How many entries it has."""
        return self.rows * self.columns


def _reader(change: Tensor) -> Read:
    return lambda start, stop: change[start:stop]


def _multiplier(pair: Pair) -> Read:
    up, down = pair
    return lambda start, stop: up[start:stop] @ down


@dataclass(frozen=True, slots=True)
class Stream:
    """Layers to be merged, in blocks of at most so many entries, all in the order of sums."""

    layers: tuple[Layer, ...]
    inputs: Inputs
    entries: int
    dtype: torch.dtype

    @staticmethod
    def of(
        layers: Sequence[Layer],
        inputs: Inputs,
        *,
        entries: int = BLOCK_ENTRIES,
        dtype: torch.dtype = torch.float32,
    ) -> Stream:
        """Layers that read in the order in which the inputs are given.

        Args:
            layers: of every input the same.
            inputs: one for each change that a layer reads.
            entries: the most of one input that are held at once; a row is never cut.
            dtype: float32 or float64, in which everything is computed.

        Raises:
            InputError: a layer has more or fewer changes than there are inputs, or two layers
                have one name.
        """
        names: set[str] = set()
        for layer in layers:
            if layer.name in names:
                raise InputError(f"`{layer.name}` is there twice")
            names.add(layer.name)
        placed = (
            replace(each, read=inputs.fit(each.read, f"changes of `{each.name}`"))
            for each in layers
        )
        return Stream(tuple(placed), inputs.sorted(), entries, dtype)

    def spans(self, layer: Layer) -> Iterator[tuple[int, int]]:
        """The first row of each block, and the first after it."""
        step = max(1, self.entries // max(1, layer.columns))
        for start in range(0, layer.rows if layer.columns else 0, step):
            yield start, min(start + step, layer.rows)

    def block(self, layer: Layer, number: int, start: int, stop: int) -> Tensor:
        """Rows of what one input changes.

        Raises:
            InputError: they hold what is no number, or are not the rows that were asked for.
        """
        values = layer.read[number](start, stop)
        where = f"`{layer.name}` of `{self.inputs.names[number]}`"
        if tuple(values.shape) != (stop - start, layer.columns):
            raise InputError(
                f"{where}: got shape {tuple(values.shape)}, expected "
                f"{(stop - start, layer.columns)}"
            )
        values = values.to(self.dtype).contiguous()
        if not math.isfinite(float(values.sum())) and not bool(values.isfinite().all()):
            raise InputError(f"{where} holds NaN or infinity: it cannot be merged")
        return values

    def blocks(self, layers: Sequence[Layer], number: int) -> Iterator[Tensor]:
        """All that one input changes of some layers, in large blocks: they are only counted."""
        counted = replace(self, entries=max(self.entries, BLOCK_ENTRIES))
        for layer in layers:
            for start, stop in counted.spans(layer):
                yield self.block(layer, number, start, stop)
