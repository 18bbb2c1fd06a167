"""The front door: everything the `data` section names, as examples with their facts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.leakage import settle_leaks
from peftkit.data.rows import Bad, Intake
from peftkit.data.split import split_rows
from peftkit.data.tokenized import read_source
from peftkit.data.totals import count_tokens
from peftkit.data.views import Chained, lengths_of, names_of, numbers_of
from peftkit.errors import InputError
from peftkit.recipe.sections.data import SplitSection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

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
    leakage: dict[str, Any]
    commits: Mapping[str, str] = field(default_factory=dict)
    """Which commit of each data set on a hub was read, by the name in the recipe."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `data.json` says."""
        return {
            "train": self.train.facts,
            "validation": self.validation.facts,
            "test": self.test.facts if self.test else None,
            "leakage": self.leakage,
            "commits": dict(self.commits),
        }

    @property
    def digests(self) -> dict[str, str]:
        """What `lock.json` remembers of the data."""
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: found.digest for name, found in sets.items() if found is not None}


def prepare_data(section: DataSection, encoder: Encoder) -> Data:
    """The training, validation and test sets that the recipe's `data` section names."""
    train = read_set("training", section.train, section.bad_rows, encoder)
    if isinstance(section.validation, SplitSection):
        kept, held = split_rows(train.examples, section.validation.fraction)
        validation = Dataset(held)
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
    return Data(train, validation, test, leakage, encoder.reading.commits)


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
