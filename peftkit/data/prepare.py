"""The front door: everything the `data` section names, as examples with their facts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peftkit.data.checks import check_rows, splits_of
from peftkit.data.rows import Bad, Intake
from peftkit.data.split import columns_of
from peftkit.data.tokenized import read_source
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    checks: Checks
    remember: tuple[Dataset, ...] = ()
    """One for each source that must not be forgotten."""

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
    return Data(replace(train, examples=left), sets["validation"], sets.get("test"), checks, kept)


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
