"""Ways to keep only some entries of a change before it is merged: by size, or by chance.

A share of the entries is kept to within one entry at every size: of a tensor with one entry either
nothing is wanted or that entry is kept. Entries of one size are kept in the order of their places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from peftkit.errors import RecipeError
from peftkit.merge.methods.chance import uniform
from peftkit.merge.methods.threshold import NONE, Threshold, largest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.merge.methods.stream import Layer, Stream

Scope = Literal["model", "tensor", "row"]
Thin = Callable[[Tensor, int], Tensor]
"""A block of one input's layer, whose first row is given, without what is not kept."""
Enter = Callable[["Layer"], tuple[Thin, ...]]
"""A layer's statistics, then one `Thin` for each input."""


class Thinning(Protocol):
    """A way to keep only some entries."""

    def prepare(self, stream: Stream) -> Enter:
        """Take the statistics of the whole model, where it needs some."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Keeps everything."""

    def prepare(self, stream: Stream) -> Enter:
        """Nothing to know."""
        return lambda _: (_unchanged,) * len(stream.inputs)


@dataclass(frozen=True, slots=True)
class Largest:
    """Keeps a share of the entries, the largest after a share that is larger still."""

    keep: float
    scope: Scope
    top: float = 0.0
    """Share of the entries above those that are kept: outliers, set to 0."""

    def prepare(self, stream: Stream) -> Enter:
        """Find the bounds in the whole model, or leave it to each layer."""
        if self.keep == 1 and self.top == 0:
            return Whole().prepare(stream)
        if self.scope == "row":
            return lambda _: (self._of_rows,) * len(stream.inputs)
        if self.scope == "tensor":
            return lambda layer: self._between(stream, [layer], layer.columns, {layer.name: 0})
        return self._of_model(stream)

    def _of_model(self, stream: Stream) -> Enter:
        places, total = {}, 0
        for layer in stream.layers:
            places[layer.name], total = total, total + layer.size
        bounds = [self._bounds(stream, stream.layers, each) for each in range(len(stream.inputs))]
        return lambda layer: tuple(
            _between(*bound, layer.columns, places[layer.name]) for bound in bounds
        )

    def _between(
        self, stream: Stream, layers: Sequence[Layer], columns: int, places: dict[str, int]
    ) -> tuple[Thin, ...]:
        first = places[layers[0].name]
        return tuple(
            _between(*self._bounds(stream, layers, each), columns, first)
            for each in range(len(stream.inputs))
        )

    def _bounds(
        self, stream: Stream, layers: Sequence[Layer], number: int
    ) -> tuple[Threshold, Threshold]:
        """What is large enough, and what too large."""
        whole = sum(layer.size for layer in layers)
        top, kept = counts(self.keep, self.top, whole)

        def find(count: int) -> Threshold:
            return largest(lambda: stream.blocks(layers, number), count, whole)

        return find(top + kept), find(top) if top else NONE

    def _of_rows(self, block: Tensor, _: int) -> Tensor:
        top, kept = counts(self.keep, self.top, block.shape[1])
        ranked = block.abs().argsort(dim=1, descending=True, stable=True)[:, top : top + kept]
        return torch.zeros_like(block).scatter_(1, ranked, block.gather(1, ranked))


@dataclass(frozen=True, slots=True)
class Dropped:
    """Keeps each entry with a probability, divided by it: the mean over seeds is the whole."""

    keep: float
    seed: int

    def prepare(self, stream: Stream) -> Enter:
        """Nothing to know."""
        return lambda layer: tuple(
            self._of(layer.name, layer.columns, digest) for digest in stream.inputs.digests
        )

    def _of(self, name: str, columns: int, digest: str) -> Thin:
        def thin(block: Tensor, row: int) -> Tensor:
            drawn = uniform(self.seed, digest, name, row * columns, block.numel())
            return drop(block, self.keep, drawn.view_as(block))

        return thin


@dataclass(frozen=True, slots=True)
class Ranked:
    """Keeps each entry with a probability that grows with its rank in its row, divided by it.

    Probabilities grow evenly from `keep - window / 2` for a row's smallest entry to
    `keep + window / 2` for its largest.

    Raises:
        RecipeError: the window reaches beyond 0 or 1.
    """

    keep: float
    window: float
    seed: int

    def __post_init__(self) -> None:
        if self.keep - self.window / 2 <= 0 or self.keep + self.window / 2 > 1:
            raise RecipeError(
                f"window: keep {self.keep:g} with a window of {self.window:g} gives probabilities "
                f"from {self.keep - self.window / 2:g} to {self.keep + self.window / 2:g}; "
                "expected more than 0 and at most 1"
            )

    def prepare(self, stream: Stream) -> Enter:
        """Nothing to know."""
        return lambda layer: tuple(
            self._of(layer.name, layer.columns, digest) for digest in stream.inputs.digests
        )

    def _of(self, name: str, columns: int, digest: str) -> Thin:
        def thin(block: Tensor, row: int) -> Tensor:
            drawn = uniform(self.seed, digest, name, row * columns, block.numel())
            return drop(block, self.chances(block), drawn.view_as(block))

        return thin

    def chances(self, block: Tensor) -> Tensor:
        """The probability of each entry to be kept, in float64."""
        order = block.abs().argsort(dim=1, stable=True)
        places = torch.arange(block.shape[1], dtype=torch.float64, device=block.device)
        ranks = torch.empty_like(block, dtype=torch.float64)
        ranks.scatter_(1, order, places.expand_as(block))
        last = block.shape[1] - 1
        return self.keep + self.window * (ranks / last - 0.5 if last else ranks)


def drop(block: Tensor, chance: float | Tensor, drawn: Tensor) -> Tensor:
    """The entries whose number is below their chance, divided by it; 0 for the others."""
    chosen = drawn.to(block.device) < chance
    return torch.where(chosen, block / chance, 0).to(block.dtype)


def counts(keep: float, top: float, size: int) -> tuple[int, int]:
    """How many entries are too large, and how many are kept, of so many."""
    kept = max(int(keep * size), 1) if keep and size else 0
    return min(int(top * size), size - kept), kept


def _between(enough: Threshold, too_large: Threshold, columns: int, place: int) -> Thin:
    def thin(block: Tensor, row: int) -> Tensor:
        first = place + row * columns
        kept = enough.shrink(block, first)
        return kept if too_large is NONE else kept - too_large.shrink(block, first)

    return thin


def _unchanged(block: Tensor, _: int) -> Tensor:
    return block
