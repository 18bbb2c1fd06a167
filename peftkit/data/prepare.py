"""The front door: everything the `data` section names, as examples with their facts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftkit.data.filters import keep_good
from peftkit.data.leakage import settle_leaks
from peftkit.data.rows import Bad, Intake
from peftkit.data.split import split_rows
from peftkit.data.tokenized import read_source
from peftkit.errors import InputError
from peftkit.recipe.sections.data import SplitSection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.draft import Encoder
    from peftkit.data.example import Example
    from peftkit.recipe.sections.data import DataSection, SourceSection


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples of one set and what happened to the rows that are not among them."""

    examples: Sequence[Example]
    skipped: Sequence[Bad] = ()
    dropped: int = 0

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
        return {"source": source, "rows": len(own), "tokens": tokens}


@dataclass(frozen=True, slots=True)
class Data:
    """Every set of a run, leaks settled."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    leakage: dict[str, Any]
    filtered: dict[str, Any] = field(default_factory=dict)
    """What `data.filters` left out of the training rows; empty where all are off."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `data.json` says."""
        return {
            "train": self.train.facts,
            "validation": self.validation.facts,
            "test": self.test.facts if self.test else None,
            "leakage": self.leakage,
        }

    @property
    def digests(self) -> dict[str, str]:
        """What `lock.json` remembers of the data."""
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: found.digest for name, found in sets.items() if found is not None}


def prepare_data(section: DataSection, encoder: Encoder) -> Data:
    """The training, validation and test sets that the recipe's `data` section names."""
    train = read_set("training", section.train, section.bad_rows, encoder)
    good, filtered = keep_good(section.filters, train.examples, encoder.task)
    train = Dataset(good, train.skipped, train.dropped)
    if isinstance(section.validation, SplitSection):
        kept, held = split_rows(train.examples, section.validation.fraction)
        validation = Dataset(held)
        if kept and not held:
            raise InputError(
                "no row can be held out for validation: all training rows say the same",
                hint="add rows, or name a source under `data.validation`",
            )
        train = Dataset(kept, train.skipped, train.dropped)
    else:
        validation = read_set("validation", section.validation.sources, section.bad_rows, encoder)
    test = read_set("test", section.test, section.bad_rows, encoder) if section.test else None
    for found, what in ((train, "training"), (validation, "validation"), (test, "test")):
        if found is not None:
            _refuse_empty(found, what)
    sets = {"validation": validation.examples} | ({"test": test.examples} if test else {})
    kept_sets, leakage = settle_leaks(section.leakage, train.examples, sets)
    validation = Dataset(kept_sets["validation"], validation.skipped, validation.dropped)
    if test:
        test = Dataset(kept_sets["test"], test.skipped, test.dropped)
    for name, examples in kept_sets.items():
        if not examples:
            raise InputError(
                f"every {name} row is also trained on, so `data.leakage: remove` leaves none",
                hint="take other rows to judge by",
            )
    return Data(train, validation, test, leakage, filtered)


def read_set(
    what: str, sources: Sequence[SourceSection], bad_rows: str, encoder: Encoder
) -> Dataset:
    """The examples of some sources, with every bad row told at once."""
    intake = Intake(bad_rows)
    examples: list[Example] = []
    dropped = 0
    for source in sources:
        found = read_source(source, bad_rows, encoder)
        examples.extend(found.examples)
        intake.found.extend(found.skipped)
        dropped += found.dropped
    intake.settle(what)
    return Dataset(examples, tuple(intake.found), dropped)


def _refuse_empty(found: Dataset, what: str) -> None:
    if found.examples:
        return
    raise InputError(
        f"the {what} data has no usable row: {len(found.skipped)} skipped, {found.dropped} dropped",
        hint="`peftkit preview RECIPE` shows what becomes of the rows",
    )
