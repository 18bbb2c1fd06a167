"""The front door: everything the `data` section names, as examples with their facts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.augment import Augmented, augment
from peftkit.data.checks import check_rows, splits_of
from peftkit.data.filters import keep_good
from peftkit.data.general import keep_apart
from peftkit.data.mixture import Mixture, mix
from peftkit.data.origin import name_sources
from peftkit.data.rows import Bad, Intake
from peftkit.data.split import columns_of
from peftkit.data.tokenized import read_source
from peftkit.data.totals import count_tokens
from peftkit.data.views import Chained, Picked, lengths_of, names_of, numbers_of
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from peftkit.data.checks import Checks
    from peftkit.data.draft import Encoder
    from peftkit.data.example import Example
    from peftkit.recipe.sections.data import DataSection, SourceSection


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples of one set and what happened to the rows that are not among them."""

    examples: Sequence[Example]
    skipped: Sequence[Bad] = ()
    dropped: int = 0
    blank: int = 0
    origins: Mapping[str, str] = field(default_factory=dict)
    """Who wrote the rows of each source, by its name."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `data.json` says of this set."""
        lengths = lengths_of(self.examples)
        return {
            "rows": len(self.examples),
            "tokens": int(lengths.sum()),
            "trained_tokens": int(numbers_of(self.examples, "trained").sum()),
            "longest": int(lengths.max(initial=0)),
            "cut": int(np.count_nonzero(numbers_of(self.examples, "cut"))),
            "dropped": self.dropped,
            "blank": self.blank,
            "skipped": [{"where": bad.where, "why": bad.why} for bad in self.skipped],
            **count_tokens(self.examples),
            "formats": names_of(self.examples, "format").used,
            "sources": self._by_source(lengths),
        }

    @property
    def digest(self) -> str:
        """Sha256 over the tokens, what is learnt of them and the labels, row by row in order."""
        contents = numbers_of(self.examples, "content")
        return hashlib.sha256(contents.astype("<u8").tobytes()).hexdigest()

    def _by_source(self, lengths: NDArray[np.int64]) -> list[dict[str, Any]]:
        sources = names_of(self.examples, "source")
        own = [(source, lengths[sources.where(source)]) for source in sources.used]
        return [
            {
                "source": name,
                "origin": self.origins.get(name, "unknown"),
                "rows": len(found),
                "tokens": int(found.sum()),
            }
            for name, found in own
        ]


@dataclass(frozen=True, slots=True)
class Data:
    """Every set of a run, leaks settled."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    checks: Checks
    mixture: Mixture
    augmented: Augmented
    """Changed copies, the last rows of the training set."""
    remember: tuple[Dataset, ...] = ()
    """One for each source that must not be forgotten."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """Which commit of each data set on a hub was read, by the name in the recipe."""
    filtered: Mapping[str, Any] = field(default_factory=dict)
    """What `data.filters` left out of the training rows; empty where all are off."""
    general: Mapping[str, Dataset] = field(default_factory=dict)
    """Rows that regularizers look at, by their names."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `data.json` says."""
        return {
            "train": {**self.train.facts, "augmented": self.augmented.facts},
            "validation": self.validation.facts,
            "test": self.test.facts if self.test else None,
            "leakage": self.checks.leakage,
            "duplicates": self.checks.duplicates,
            "label_conflicts": self.checks.conflicts,
            "mixture": self.mixture.facts,
            "commits": dict(self.commits),
        } | ({"general": _facts_of(self.general)} if self.general else {})

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
    def own(self) -> Sequence[Example]:
        """The training rows as they were read, without replay and changed copies."""
        read = len(self.train.examples) - len(self.augmented.examples)
        sources = len(self.mixture.names) - self.mixture.replayed
        return Picked(self.train.examples, np.flatnonzero(self.mixture.numbers[:read] < sources))

    @property
    def digests(self) -> dict[str, str]:
        """What `lock.json` remembers of the data."""
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        sets |= self.general
        return {name: found.digest for name, found in sets.items() if found is not None}


def prepare_data(
    section: DataSection,
    encoder: Encoder,
    remember: Sequence[SourceSection] = (),
    *,
    seed: int = 0,
    general: Mapping[str, SourceSection] = MappingProxyType({}),
) -> Data:
    """The sets that the recipe's `data` section names, and those that it must `remember`.

    Rows are held out before any is copied or mixed in, so that nothing made of a training row ever
    stands among those it is judged by.
    """
    names = name_sources([*section.train, *section.replay])
    own = names[: len(section.train)]
    splits = splits_of(section)
    keeping = replace(encoder, columns=columns_of(splits))
    train = read_set("training", section.train, section.bad_rows, keeping, own)
    good, filtered = keep_good(section.filters, train.examples, encoder.task)
    train = replace(train, examples=good)
    _refuse_empty(train, "training")
    sets = _read_named(section, encoder)
    kept = tuple(
        read_set("remember", (source,), section.bad_rows, encoder, (name,))
        for source, name in zip(remember, name_sources(remember), strict=True)
    )
    benchmarks = read_set("benchmark", section.benchmarks, section.bad_rows, encoder)
    apart = {
        "remember": [example for found in kept for example in found.examples],
        "benchmarks": benchmarks.examples,
    }
    named = {name: found.examples for name, found in sets.items()}
    replay = read_set("replay", section.replay, section.bad_rows, encoder, names[len(own) :])
    left, held, checks = check_rows(section, splits, train.examples, named, apart, replay.examples)
    nothing = Dataset((), origins=train.origins)
    sets |= {name: replace(sets.get(name, nothing), examples=held[name]) for name in held}
    train = _with_replay(train, replay, left)
    judged = [each.examples for each in (*sets.values(), *kept, benchmarks)]
    beside = {
        name: _read_general(name, source, judged, section.bad_rows, encoder)
        for name, source in general.items()
    }
    copies = augment(section, train.examples, own, encoder, seed)
    if copies.examples:
        train = replace(train, examples=Chained([train.examples, copies.examples]))
    mixture = mix(section, train.examples, names, seed)
    return Data(
        train,
        sets["validation"],
        sets.get("test"),
        checks,
        mixture,
        copies,
        kept,
        encoder.reading.commits,
        filtered,
        beside,
    )


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
    found = [
        read_source(source, bad_rows, encoder, name)
        for source, name in zip(sources, names, strict=True)
    ]
    for each in found:
        intake.found.extend(each.skipped)
    intake.settle(what)
    examples = found[0].examples if len(found) == 1 else Chained([each.examples for each in found])
    return Dataset(
        examples,
        tuple(intake.found),
        sum(each.dropped for each in found),
        sum(each.blank for each in found),
        {name: source.origin for source, name in zip(sources, names, strict=True)},
    )


def _read_named(section: DataSection, encoder: Encoder) -> dict[str, Dataset]:
    """The sets to judge by that have sources of their own."""
    named = {
        "validation": getattr(section.validation, "sources", ()),
        "test": section.test if isinstance(section.test, tuple) else (),
    }
    sets = {
        name: read_set(name, sources, section.bad_rows, encoder)
        for name, sources in named.items()
        if sources
    }
    for name, found in sets.items():
        _refuse_empty(found, name)
    return sets


def _read_general(
    name: str,
    source: SourceSection,
    judged: Sequence[Sequence[Example]],
    bad_rows: str,
    encoder: Encoder,
) -> Dataset:
    """What a regularizer looks at, without the rows that are judged by."""
    found = read_set(f"`{name}`", (source,), bad_rows, encoder)
    return replace(found, examples=keep_apart(name, found.examples, judged))


def _facts_of(sets: Mapping[str, Dataset]) -> dict[str, Any]:
    return {name: found.facts for name, found in sets.items()}


def _with_replay(train: Dataset, general: Dataset, left: Sequence[Example]) -> Dataset:
    """The training set whose rows are `left`, those that keep alive what the base knew last."""
    return Dataset(
        left,
        (*train.skipped, *general.skipped),
        train.dropped + general.dropped,
        train.blank + general.blank,
        {**train.origins, **general.origins},
    )


def _refuse_empty(found: Dataset, what: str) -> None:
    if found.examples:
        return
    raise InputError(
        f"the {what} data has no usable row: {len(found.skipped)} skipped, {found.dropped} dropped",
        hint="why: `--set data.bad_rows=error --set data.too_long=error`",
    )
