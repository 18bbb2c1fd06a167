"""The front door: everything the `data` section names, as examples with their facts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.checks import check_rows, splits_of
from peftkit.data.rows import Bad, Intake
from peftkit.data.split import columns_of
from peftkit.data.tokenized import read_source
from peftkit.data.totals import count_tokens
from peftkit.data.views import Chained, lengths_of, names_of, numbers_of
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
        return [{"source": name, "rows": len(n), "tokens": int(n.sum())} for name, n in own]


@dataclass(frozen=True, slots=True)
class Data:
    """Every set of a run, leaks settled."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    checks: Checks
    remember: tuple[Dataset, ...] = ()
    """One for each source that must not be forgotten."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """Which commit of each data set on a hub was read, by the name in the recipe."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `data.json` says."""
        return {
            "train": self.train.facts,
            "validation": self.validation.facts,
            "test": self.test.facts if self.test else None,
            "leakage": self.checks.leakage,
            "duplicates": self.checks.duplicates,
            "label_conflicts": self.checks.conflicts,
            "commits": dict(self.commits),
        }

    @property
    def digests(self) -> dict[str, str]:
        """What `lock.json` remembers of the data."""
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: found.digest for name, found in sets.items() if found is not None}


def prepare_data(
    section: DataSection, encoder: Encoder, remember: Sequence[SourceSection] = ()
) -> Data:
    """The sets that the recipe's `data` section names, and those that it must `remember`."""
    splits = splits_of(section)
    keeping = replace(encoder, columns=columns_of(splits))
    train = read_set("training", section.train, section.bad_rows, keeping)
    _refuse_empty(train, "training")
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
    kept = tuple(read_set("remember", (each,), section.bad_rows, encoder) for each in remember)
    apart = {
        "remember": [example for found in kept for example in found.examples],
        "benchmarks": read_set("benchmark", section.benchmarks, section.bad_rows, encoder).examples,
    }
    named_sets = {name: found.examples for name, found in sets.items()}
    left, held, checks = check_rows(section, splits, train.examples, named_sets, apart)
    sets |= {name: replace(sets.get(name, Dataset(())), examples=held[name]) for name in held}
    return Data(
        replace(train, examples=left),
        sets["validation"],
        sets.get("test"),
        checks,
        kept,
        encoder.reading.commits,
    )


def read_set(
    what: str, sources: Sequence[SourceSection], bad_rows: str, encoder: Encoder
) -> Dataset:
    """The examples of some sources, with every bad row told at once."""
    intake = Intake(bad_rows)
    found = [read_source(source, bad_rows, encoder) for source in sources]
    for each in found:
        intake.found.extend(each.skipped)
    intake.settle(what)
    examples = found[0].examples if len(found) == 1 else Chained([each.examples for each in found])
    dropped, blank = sum(each.dropped for each in found), sum(each.blank for each in found)
    return Dataset(examples, tuple(intake.found), dropped, blank)


def _refuse_empty(found: Dataset, what: str) -> None:
    if found.examples:
        return
    raise InputError(
        f"the {what} data has no usable row: {len(found.skipped)} skipped, {found.dropped} dropped",
        hint="`peftkit preview RECIPE` shows what becomes of the rows",
    )
