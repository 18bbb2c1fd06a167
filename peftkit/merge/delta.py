"""`Delta`: what an adapter or a fine-tune changes of a base, to add, subtract, weigh and save.

Everything is kept in its natural form, so that sums are exact: factors lie side by side, networks
get more hidden units, and nothing is rounded before it is saved. What is no change of the base,
such as a new head, travels along; it is never averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peftkit.errors import InputError, RecipeError
from peftkit.merge import low_rank
from peftkit.merge.joining import Term, add_whole, agree_all, collect, join_parts, refuse_two
from peftkit.merge.low_rank import LowRank, decompose
from peftkit.merge.methods.conflict import sign_conflicts, spread_rows, total
from peftkit.merge.methods.inputs import Inputs
from peftkit.merge.methods.stream import Stream
from peftkit.merge.other_changes import (
    join_networks,
    join_scalings,
    scale_network,
    scale_scaling,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from peftkit.merge.folding import Fold
    from peftkit.merge.low_rank import Spectrum
    from peftkit.merge.other_changes import Network, Scaling


@dataclass(frozen=True, slots=True)
class Loss:
    """What cutting the rank of a change cost: the norm of what is missing by that of the whole."""

    relative: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float]:
        """The layer that lost most."""
        return max(self.layers.items(), key=lambda item: item[1], default=("", 0.0))


@dataclass(frozen=True)
class Delta:
    """A change of a base, as a vector: `a + 0.7 * b - c / 2` is one too."""

    low: Mapping[str, LowRank] = field(default_factory=dict)
    """Factors, by module."""
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    """Changes of whole parameters, by parameter."""
    layers: Mapping[str, str] = field(default_factory=dict)
    """How the weights of modules among them lie, if known: `linear`, `conv1d` or `embedding`.

    One that is `tied` is that of several modules.
    """
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    """By module."""
    networks: Mapping[str, Network] = field(default_factory=dict)
    """By module."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """Heads and rows of new tokens, by their names in the file: no changes of the base."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a configuration says beside: the base, its revision, the task."""
    terms: tuple[Term, ...] = ()
    error: Loss = Loss()
    """What `compress` cost."""

    @staticmethod
    def load(path: str | Path, base: str | None = None) -> Delta:
        """What an adapter, or a fine-tune, in a folder changes.

        Args:
            path: an adapter folder, a run folder, or a folder with a fine-tuned model.
            base: where the base is; only needed for DoRA, for methods that change the base's own
                parameters, and for a fine-tuned model. The adapter's own word is taken for it.

        Raises:
            RecipeError: there is nothing at `path`, or the base is needed and not found.
            InputError: it is damaged or hostile, or cannot be a term of a sum.
        """
        from peftkit.merge.loading import load_delta

        return load_delta(str(path), base)

    def save(self, folder: str | Path) -> None:
        """Write an adapter that vanilla peft loads; ranks are as low as they exactly are.

        Raises:
            InputError: what is left is no adapter of one kind, or nothing.
            WriteError: it could not be written; what was there still is.
        """
        from peftkit.merge.saving import save_delta

        save_delta(self, str(folder))

    def fold(self, base: str | Path, out: str | Path) -> Fold:
        """Write the base with the change in its own weights, tensor by tensor.

        Args:
            base: a folder, a hub id or an embedded base.
            out: the folder of the new model.

        Raises:
            InputError: something of the change has no place in the base's weights.
            WriteError: it could not be written; what was there still is.
        """
        from peftkit.merge.folding import fold_delta

        return fold_delta(self, str(base), Path(out))

    def __add__(self, other: Delta | int) -> Delta:
        """The sum, exactly; 0 may stand first, so that `sum` works."""
        if not isinstance(other, Delta):
            return self if other == 0 and not isinstance(other, bool) else NotImplemented
        return Delta(
            low=join_parts(self.low, other.low, low_rank.join),
            dense=join_parts(self.dense, other.dense, add_whole),
            layers={**other.layers, **self.layers},
            scalings=join_parts(self.scalings, other.scalings, join_scalings),
            networks=join_parts(self.networks, other.networks, join_networks),
            kept=join_parts(self.kept, other.kept, refuse_two),
            facts=agree_all([self, other]),
            terms=collect((*self.terms, *other.terms)),
        )

    __radd__ = __add__

    def __sub__(self, other: Delta) -> Delta:
        """The difference, exactly."""
        return self + -other if isinstance(other, Delta) else NotImplemented

    def __neg__(self) -> Delta:
        """What takes the change back."""
        return self * -1.0

    def __mul__(self, factor: float) -> Delta:
        """The change times a number; heads and new tokens stay as they are."""
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        if not math.isfinite(factor):
            raise RecipeError(f"a change cannot be multiplied by {factor}")
        return replace(
            self._each(lambda _: float(factor)),
            terms=tuple(replace(term, weight=term.weight * factor) for term in self.terms),
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Delta:
        """The change divided by a number."""
        if isinstance(divisor, bool) or not isinstance(divisor, int | float):
            return NotImplemented
        if divisor == 0:
            raise RecipeError("a change cannot be divided by 0")
        return self * (1 / divisor)

    def __repr__(self) -> str:
        """Its terms, sizes and ranks, on one line."""
        sums = " + ".join(f"{term.weight:g}*{term.name}" for term in self.terms) or "nothing"
        ranks = sorted({change.rank for change in self.low.values()})
        parts = [f"{len(self.low)} low-rank (rank {', '.join(map(str, ranks))})"] * bool(ranks)
        for what in ("dense", "scalings", "networks", "kept"):
            parts += [f"{len(getattr(self, what))} {what}"] * bool(getattr(self, what))
        return f"<Delta {sums}: {', '.join(parts) or 'empty'}>"

    def weigh(self, factors: Mapping[str, float]) -> Delta:
        """The change times a number for the modules that each pattern, as `*.mlp.*`, fits.

        The first pattern that fits counts; what none fits stays as it is.

        Raises:
            RecipeError: a pattern fits nothing.
        """
        names = [*self.low, *self.dense, *self.scalings, *self.networks]
        for pattern in factors:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"`{pattern}` fits no module; there is `{names[0] if names else 'none'}`"
                )

        def factor(name: str) -> float:
            owner = name.rpartition(".")[0]  # a bias counts like the factors beside it
            called = (name, owner) if name in self.dense and owner in self.low else (name,)
            fits = (
                value
                for pattern, value in factors.items()
                if any(fnmatchcase(each, pattern) for each in called)
            )
            return next(fits, 1.0)

        return self._each(factor)

    def without(self, *patterns: str) -> Delta:
        """The change without what a pattern such as `*norm*` or `score*` fits.

        Raises:
            RecipeError: a pattern fits nothing.
        """
        every: dict[str, Any] = {what: getattr(self, what) for what in PARTS}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for part in every.values() for name in part):
                raise RecipeError(f"`{pattern}` fits nothing of {self!r}")
        left: dict[str, Any] = {
            what: {
                name: value
                for name, value in part.items()
                if not any(fnmatchcase(name, pattern) for pattern in patterns)
            }
            for what, part in every.items()
        }
        return replace(self, **left)

    def compress(self, *, rank: int | None = None, energy: float | None = None) -> Delta:
        """The nearest change of a lower rank; what it cost is `.error`.

        Without either, every rank becomes as low as it exactly is. Changes of whole matrices
        become factors too.

        Args:
            rank: the most that a layer may keep.
            energy: the share of the squared singular values that every layer must keep.

        Raises:
            RecipeError: both are given, or one is out of range.
        """
        _check_cut(rank, energy)
        cut, losses, total, gone = {}, {}, 0.0, 0.0
        matrices = {} if rank is None and energy is None else self._matrices()
        for name, change in {**self.low, **matrices}.items():
            spectrum = decompose(change)
            keep = len(spectrum.values)
            if rank is not None:
                keep = min(rank, keep)
            elif energy is not None:
                keep = low_rank.rank_for(spectrum, energy)
            whole, missing = low_rank.lost(spectrum, 0), low_rank.lost(spectrum, keep)
            losses[name] = math.sqrt(missing / whole) if whole else 0.0
            total, gone = total + whole, gone + missing
            if keep:
                cut[name] = low_rank.rebuild(spectrum, keep, change.layer)
        dense = {name: value for name, value in self.dense.items() if _module(name) not in matrices}
        error = Loss(math.sqrt(gone / total) if total else 0.0, losses)
        return replace(self, low=cut, dense=dense, error=error)

    def spectra(self) -> dict[str, Spectrum]:
        """The singular values of every low-rank change, by module."""
        return {name: decompose(change) for name, change in self.low.items()}

    @property
    def ranks(self) -> dict[str, int]:
        """The exact rank of every low-rank change, by module; 0 where terms cancel."""
        return {name: len(spectrum.values) for name, spectrum in self.spectra().items()}

    @property
    def effective_ranks(self) -> dict[str, float]:
        """How many directions every low-rank change uses alike, by module."""
        return {name: low_rank.effective_rank(each) for name, each in self.spectra().items()}

    @property
    def norm(self) -> float:
        """The root of the sum of the squares of all that changes; 0 where terms cancel.

        Raises:
            InputError: there are networks, whose parameters are no change of the base.
        """
        self._refuse_networks(self)
        total = sum(float(each.values.square().sum()) for each in self.scalings.values())
        whole = dict(self.dense)
        for name, change in self.low.items():
            if (values := whole.pop(f"{name}.weight", None)) is not None:
                total += float((values + change.dense()).square().sum())
            else:
                total += low_rank.lost(decompose(change), 0)
        return math.sqrt(total + sum(float(each.square().sum()) for each in whole.values()))

    def dot(self, other: Delta) -> float:
        """The sum of the products of all entries of both changes.

        Raises:
            InputError: one of them has networks, whose parameters are no change of the base.
        """
        self._refuse_networks(other)
        total = 0.0
        for name in self.low.keys() & other.low.keys():
            low_rank.join(self.low[name], other.low[name], name)  # or they do not fit
            total += low_rank.multiply(self.low[name], other.low[name])
        for one, another in ((self, other), (other, self)):
            for name, change in one.low.items():
                if (whole := another.dense.get(f"{name}.weight")) is not None:
                    total += float((change.dense() * whole).sum())
        for name in self.dense.keys() & other.dense.keys():
            total += float((self.dense[name].double() * other.dense[name]).sum())
        for name in self.scalings.keys() & other.scalings.keys():
            total += float((self.scalings[name].values * other.scalings[name].values).sum())
        return total

    def cosine(self, other: Delta) -> float:
        """How alike two changes are, from -1 to 1; 0 where one is nothing."""
        norms = self.norm * other.norm
        return self.dot(other) / norms if norms else 0.0

    def overlap(self, other: Delta) -> dict[str, float]:
        """By module, the share of directions of the smaller change that the other has too."""
        return {
            name: low_rank.overlap(decompose(change), decompose(other.low[name]))
            for name, change in self.low.items()
            if name in other.low
        }

    def sign_conflict(self, other: Delta) -> float:
        """Share of the entries that both change in which they pull in opposite directions.

        Of a large model, as every so many-th row says.
        """
        shared = {
            name: [(each.low[name].up, each.low[name].down) for each in (self, other)]
            for name in self.low
            if name in other.low
        }
        inputs = Inputs((1.0, 1.0), ("one", "other"), ("one", "other"))
        stream = Stream.of(spread_rows(shared), inputs, dtype=torch.float64)
        return total(sign_conflicts(stream).values()).share

    def _each(self, factor: Callable[[str], float]) -> Delta:
        """Every part times a number that its name decides."""
        return replace(
            self,
            low={name: low_rank.scale(each, factor(name)) for name, each in self.low.items()},
            dense={name: each * factor(name) for name, each in self.dense.items()},
            scalings={n: scale_scaling(each, factor(n)) for n, each in self.scalings.items()},
            networks={n: scale_network(each, factor(n)) for n, each in self.networks.items()},
            error=Loss(),
        )

    def _matrices(self) -> dict[str, LowRank]:
        """Whole weights as factors of full rank, and what low-rank changes add to them."""
        found = {}
        for name, values in self.dense.items():
            if values.ndim != 2 or not name.endswith(".weight"):
                continue
            module, change = _module(name), values.double()
            if self.layers.get(module) == "tied":  # factors would be of one of its users only
                continue
            low = self.low.get(module)
            layer = self.layers.get(module, "linear") if low is None else low.layer
            whole = LowRank(
                change if layer == "linear" else change.T,
                torch.eye(change.shape[1 if layer == "linear" else 0], dtype=torch.float64),
                layer,
            )
            found[module] = whole if low is None else low_rank.join(whole, low, module)
        return found

    def _refuse_networks(self, other: Delta) -> None:
        if self.networks or other.networks:
            raise InputError(
                "bottlenecks are networks beside the base: their parameters are no vector in which "
                "lengths or angles mean anything"
            )


PARTS = ("low", "dense", "scalings", "networks", "kept")


def _check_cut(rank: int | None, energy: float | None) -> None:
    if rank is not None and energy is not None:
        raise RecipeError("either `rank` or `energy` says where to cut; keep one")
    if rank is not None and rank < 1:
        raise RecipeError(f"rank: expected at least 1, got {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise RecipeError(f"energy: expected more than 0 and at most 1, got {energy}")


def _module(parameter: str) -> str:
    return parameter.removesuffix(".weight")
