"""What each source's share of a run is to be, and what it turns out to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.order import Mixed, Part, Shuffled, settle_shares
from peftkit.data.origin import number_sources
from peftkit.data.views import lengths_of
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example
    from peftkit.data.order import Order
    from peftkit.recipe.sections.data import DataSection


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """The sources of the training rows, and the order in which their rows come."""

    order: Order
    names: tuple[str, ...]
    replayed: int
    """How many of the sources, the last ones, are there against forgetting."""
    numbers: NDArray[np.int64]
    """For each row the number of its source."""
    lengths: NDArray[np.int64]
    """Tokens of each row."""

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of an epoch, to a row or so."""
        if isinstance(self.order, Mixed):
            return round(self.order.epoch_length)
        return int(self.lengths.sum())

    @property
    def facts(self) -> list[dict[str, Any]] | None:
        """What `data.json` says of the shares asked for; None if rows are shuffled together."""
        if not isinstance(self.order, Mixed):
            return None
        tokens, rows = np.zeros(len(self.names)), np.zeros(len(self.names))
        for part in self.order.parts:
            own = self.numbers[part.rows]
            rate = part.share / part.total
            tokens += self._per_source(own, part.sizes * rate)
            rows += self._per_source(own, np.full(len(own), rate))
        shares = zip(self.names, tokens.tolist(), (rows / rows.sum()).tolist(), strict=True)
        return [
            {"source": name, "replay": self._is_replay(number)}
            | {"share_of_tokens": by_token, "share_of_rows": by_row}
            for number, (name, by_token, by_row) in enumerate(shares)
        ]

    def seen(self, places: int) -> list[dict[str, Any]]:
        """What `metrics.json` says of each source when so many rows have been trained on."""
        times = self.order.seen(places)
        rows = self._per_source(self.numbers, times)
        tokens = self._per_source(self.numbers, times * self.lengths)
        own = np.maximum(self._per_source(self.numbers, np.ones(len(times))), 1)
        return [
            {
                "source": name,
                "replay": self._is_replay(number),
                "rows": int(rows[number]),
                "tokens": int(tokens[number]),
                "share_of_rows": float(rows[number] / rows.sum()),
                "share_of_tokens": float(tokens[number] / tokens.sum()),
                "times": float(rows[number] / own[number]),
            }
            for number, name in enumerate(self.names)
        ]

    def _is_replay(self, number: int) -> bool:
        return number >= len(self.names) - self.replayed

    def _per_source(self, numbers: NDArray[np.int64], amounts: NDArray[Any]) -> NDArray[Any]:
        return np.bincount(numbers, amounts, minlength=len(self.names))


def mix(
    section: DataSection, examples: Sequence[Example], names: Sequence[str], seed: int
) -> Mixture:
    """How the rows of the training and replay sources, named in that order, come in turn.

    Raises:
        InputError: a source that is to have a share has no row.
    """
    numbers, lengths = number_sources(examples, names), lengths_of(examples)
    weighted = section.train[0].weight != "auto"
    apart = weighted or section.mixture.temperature != 1
    order: Order
    if apart or section.replay:
        main = len(section.train)
        groups = [[number] for number in range(main)] if apart else [list(range(main))]
        groups += [[number] for number in range(main, len(names))]
        rows = [np.flatnonzero(np.isin(numbers, group)) for group in groups]
        _refuse_empty(dict(zip((names[group[0]] for group in groups), rows, strict=True)))
        order = Mixed(tuple(_parts(section, rows, lengths)), seed, section.mixture.epoch)
    else:
        order = Shuffled(len(examples), seed)
    return Mixture(order, tuple(names), len(section.replay), numbers, lengths)


def _parts(
    section: DataSection, rows: Sequence[NDArray[np.int64]], lengths: NDArray[np.int64]
) -> Iterator[Part]:
    """A part for each group of sources, those of `replay` last.

    Shares are of tokens throughout: a share of rows is that of the tokens such rows have on
    average, and each row of a source then takes as much of it as any other.
    """
    even = section.mixture.by == "rows"
    sizes = [lengths[own].astype(np.float64) for own in rows]
    main = len(rows) - len(section.replay)
    means = [float(own.mean()) for own in sizes]
    weights = [source.weight for source in section.train if source.weight != "auto"]
    amounts = [len(own) if even else float(own.sum()) for own in sizes[:main]]
    shares = settle_shares(amounts, weights, section.mixture.temperature)
    if even:
        shares = settle_shares((), [s * m for s, m in zip(shares, means, strict=False)], 1.0)
        sizes[:main] = [np.full_like(own, own.mean()) for own in sizes[:main]]
    left = 1 - sum(source.fraction for source in section.replay)
    shares = [share * left for share in shares]
    shares += [source.fraction for source in section.replay]
    for number, (own, size, share) in enumerate(zip(rows, sizes, shares, strict=True)):
        yield Part(own, size, share, counts=number < main)


def _refuse_empty(rows: Mapping[str, NDArray[np.int64]]) -> None:
    empty = next((name for name, own in rows.items() if not len(own)), None)
    if empty is not None:
        raise InputError(
            f"`{empty}` has no row left to train on, so it cannot have its share",
            hint="take it out, or keep its rows: `--set data.duplicates=warn` if they repeat "
            "others; `--set data.bad_rows=error --set data.too_long=error` says what is wrong",
        )
