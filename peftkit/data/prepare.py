"""The front door: everything the `data` section names, as examples with their facts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peftkit.data.augment import Augmented, augment
from peftkit.data.leakage import settle_leaks
from peftkit.data.mixture import Mixture, mix
from peftkit.data.origin import name_sources
from peftkit.data.rows import Bad, Intake
from peftkit.data.split import split_rows
from peftkit.data.tokenized import read_source
from peftkit.data.views import Chained
from peftkit.errors import InputError
from peftkit.recipe.sections.data import SplitSection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.data.draft import Encoder
    from peftkit.data.example import Example
    from peftkit.recipe.sections.data import DataSection, SourceSection


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples of one set and what happened to the rows that are not among them."""

    examples: Sequence[Example]
    skipped: Sequence[Bad] = ()
    dropped: int = 0
    origins: Mapping[str, str] = field(default_factory=dict)
    """Who wrote the rows of each source, by its name."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `data.json` says of this set."""
        sources = sorted({example.source for example in self.examples})
        return {
            "rows": len(self.examples),
            "tokens": sum(example.length for example in self.examples),
            "trained_tokens": sum(example.trained_tokens for example in self.examples),
            "longest": max((example.length for example in self.examples), default=0),
            "cut": sum(1 for example in self.examples if example.cut),
            "dropped": self.dropped,
            "skipped": [{"where": bad.where, "why": bad.why} for bad in self.skipped],
            "formats": sorted({example.format for example in self.examples}),
            "sources": [self._of_source(source) for source in sources],
        }

    @property
    def digest(self) -> str:
        """Sha256 over the tokens and what is learnt of them, in order."""
        total = hashlib.sha256()
        for example in self.examples:
            total.update(example.tokens.tobytes())
            total.update(example.trained.tobytes())
            if example.labels:
                total.update(repr(example.labels).encode())
        return total.hexdigest()

    def _of_source(self, source: str) -> dict[str, Any]:
        own = [example for example in self.examples if example.source == source]
        tokens = sum(example.length for example in own)
        origin = self.origins.get(source, "unknown")
        return {"source": source, "origin": origin, "rows": len(own), "tokens": tokens}


@dataclass(frozen=True, slots=True)
class Data:
    """Every set of a run, leaks settled."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    leakage: dict[str, Any]
    mixture: Mixture
    augmented: Augmented
    """Changed copies, the last rows of the training set."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `data.json` says."""
        return {
            "train": {**self.train.facts, "augmented": self.augmented.facts},
            "validation": self.validation.facts,
            "test": self.test.facts if self.test else None,
            "leakage": self.leakage,
            "mixture": self.mixture.facts,
        }

    def seen(self, places: int) -> dict[str, Any]:
        """What `metrics.json` says of sources and origins when so many rows were trained on."""
        origins = self.train.origins
        found = self.mixture.seen(places)
        sources = [{"source": e["source"], "origin": origins[e["source"]], **e} for e in found]
        totals = ("rows", "tokens", "share_of_rows", "share_of_tokens")
        return {
            "sources": sources,
            "origins": [
                {"origin": origin}
                | {key: sum(e[key] for e in sources if e["origin"] == origin) for key in totals}
                for origin in dict.fromkeys(each["origin"] for each in sources)
            ],
        }

    @property
    def digests(self) -> dict[str, str]:
        """What `lock.json` remembers of the data."""
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: found.digest for name, found in sets.items() if found is not None}


def prepare_data(section: DataSection, encoder: Encoder, seed: int = 0) -> Data:
    """The training, validation and test sets that the recipe's `data` section names."""
    names = name_sources([*section.train, *section.replay])
    own, general = names[: len(section.train)], names[len(section.train) :]
    train = read_set("training", section.train, section.bad_rows, encoder, own)
    if isinstance(section.validation, SplitSection):
        kept, held = split_rows(train.examples, section.validation.fraction)
        validation = Dataset(held, origins=train.origins)
        if kept and not held:
            raise InputError(
                "no row can be held out for validation: all training rows say the same",
                hint="add rows, or name a source under `data.validation`",
            )
        train = replace(train, examples=kept)
    else:
        validation = read_set("validation", section.validation.sources, section.bad_rows, encoder)
    test = read_set("test", section.test, section.bad_rows, encoder) if section.test else None
    for found, what in ((train, "training"), (validation, "validation"), (test, "test")):
        if found is not None:
            _refuse_empty(found, what)
    train = _add_replay(train, section, encoder, general)
    sets = {"validation": validation.examples} | ({"test": test.examples} if test else {})
    kept_sets, leakage = settle_leaks(section.leakage, train.examples, sets)
    validation = replace(validation, examples=kept_sets["validation"])
    if test:
        test = replace(test, examples=kept_sets["test"])
    for name, examples in kept_sets.items():
        if not examples:
            raise InputError(
                f"every {name} row is also trained on, so `data.leakage: remove` leaves none",
                hint="take other rows to judge by",
            )
    copies = augment(section, train.examples, own, encoder, seed)
    train = _add_copies(train, copies)
    mixture = mix(section, train.examples, names, seed)
    return Data(train, validation, test, leakage, mixture, copies)


def read_set(
    what: str,
    sources: Sequence[SourceSection],
    bad_rows: str,
    encoder: Encoder,
    names: Sequence[str] = (),
) -> Dataset:
    """The examples of some sources, with every bad row told at once."""
    intake = Intake(bad_rows)
    names = names or name_sources(sources)
    examples: list[Example] = []
    dropped = 0
    for source, name in zip(sources, names, strict=True):
        found = read_source(source, bad_rows, encoder, name)
        examples.extend(found.examples)
        intake.found.extend(found.skipped)
        dropped += found.dropped
    intake.settle(what)
    origins = {name: source.origin for source, name in zip(sources, names, strict=True)}
    return Dataset(examples, tuple(intake.found), dropped, origins)


def _add_replay(
    train: Dataset, section: DataSection, encoder: Encoder, names: Sequence[str]
) -> Dataset:
    """The training set with the rows that keep alive what the base knew, after its own."""
    if not section.replay:
        return train
    general = read_set("replay", section.replay, section.bad_rows, encoder, names)
    return Dataset(
        Chained([train.examples, general.examples]),
        (*train.skipped, *general.skipped),
        train.dropped + general.dropped,
        {**train.origins, **general.origins},
    )


def _add_copies(train: Dataset, copies: Augmented) -> Dataset:
    if not copies.examples:
        return train
    return replace(train, examples=Chained([train.examples, copies.examples]))


def _refuse_empty(found: Dataset, what: str) -> None:
    if found.examples:
        return
    raise InputError(
        f"the {what} data has no usable row: {len(found.skipped)} skipped, {found.dropped} dropped",
        hint="`peftkit preview RECIPE` shows what becomes of the rows",
    )
