"""The `data` section: rows to learn from, rows to judge by, and what to do with bad ones."""

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from peftkit.recipe.sections.augment import AugmentSection
from peftkit.recipe.sections.filters import FiltersSection, as_filters
from peftkit.recipe.sections.learn import LearnSection
from peftkit.recipe.sections.mixture import MixtureSection, Origin
from peftkit.recipe.sections.section import Auto, Count, Expected, PositiveNumber, Section
from peftkit.recipe.sections.split import SplitSection


class SourceSection(Section):
    """One place rows come from."""

    source: Annotated[str, Field(min_length=1, examples=["data/train.jsonl"])]
    """A file, a folder, a pattern such as `data/**/*.jsonl`, or `hub:org/set@commit:split`.

    Files are jsonl, json, csv, tsv, parquet or txt; those of text may be packed as .gz or .zst.
    """
    format: Literal[
        "auto",
        "chat",
        "instruction",
        "completion",
        "tokenized",
        "text",
        "classification",
        "tokens",
        "similar",
    ] = "auto"
    """How a row becomes tokens; `auto` reads it off the columns, for the task of the base."""
    columns: Annotated[
        dict[str, str], Expected("a section of names such as `{prompt: question}`")
    ] = Field(default_factory=dict)
    """Column names that differ, as `expected: actual`, e.g. `{prompt: question}`."""
    learn: LearnSection = LearnSection()
    """Which turns of a chat carry loss."""
    control_tokens: Literal["text", "tokens"] = "text"
    """What a row's text means where it spells out a control token such as `<|im_end|>`: `text`
    reads it as any other text and counts it; `tokens` is for rows that hold a chat as one text."""

    origin: Origin = "unknown"
    """Who wrote the rows: `human`, `weak` (a rule, say) or `generated`; figures are told apart."""

    @model_validator(mode="after")
    def _learn_where_there_are_turns(self) -> Self:
        if self.learn != LearnSection() and self.format not in ("auto", "chat", "instruction"):
            msg = f"`learn` says whose turns are learned; rows of format `{self.format}` have none"
            raise ValueError(msg)
        return self


class TrainSource(SourceSection):
    """A source of rows to learn from."""

    weight: PositiveNumber | Auto = "auto"
    """Its share in the mixture, beside the others' weights; all sources have one, or none."""


class ReplaySource(SourceSection):
    """A source of rows that keep alive what the base knew."""

    fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of all tokens that are trained on; its rows start over as often as that takes."""


def as_sources(value: Any) -> Any:
    """A path, a section or a list of either, as a tuple of sections."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple({"source": item} if isinstance(item, str) else item for item in items)


_Written = str | SourceSection | tuple[str | SourceSection, ...]
_PHRASE = Expected("a path, a source such as `{source: data/train.jsonl}`, or a list of them")

Sources = Annotated[
    tuple[SourceSection, ...],
    BeforeValidator(as_sources, json_schema_input_type=_Written),
    _PHRASE,
]
SomeSources = Annotated[Sources, Field(min_length=1, examples=["data/train.jsonl"])]
_WrittenForTraining = str | TrainSource | tuple[str | TrainSource, ...]
TrainSources = Annotated[
    tuple[TrainSource, ...],
    BeforeValidator(as_sources, json_schema_input_type=_WrittenForTraining),
    _PHRASE,
    Field(min_length=1, examples=["data/train.jsonl"]),
]
ReplaySources = Annotated[
    tuple[ReplaySource, ...],
    BeforeValidator(as_sources, json_schema_input_type=ReplaySource | tuple[ReplaySource, ...]),
    Expected("a source such as `{source: general.txt, fraction: 0.05}`, or a list of them"),
]


class ValidationSources(Section):
    """Validation rows from files of their own."""

    sources: SomeSources
    """The files; a single one may be written as `source`."""


def _as_validation(value: Any) -> Any:
    if isinstance(value, Section):
        return value
    keys = value.keys() if isinstance(value, dict) else {"source"}
    _refuse_both(keys)
    return {"sources": value} if "source" in keys else value


def _refuse_both(keys: Collection[str]) -> None:
    if {"source", "sources"} & set(keys) and {"fraction", "by"} & set(keys):
        msg = "either hold rows out with `fraction` and `by`, or name a `source`; keep one"
        raise ValueError(msg)


def _as_test(value: Any) -> Any:
    if isinstance(value, dict):
        _refuse_both(value)
    return value if _test_kind(value) == "split" else as_sources(value)


def _test_kind(value: Any) -> str:
    held_out = isinstance(value, dict) and not value.keys() & SourceSection.model_fields.keys()
    return "split" if held_out or isinstance(value, SplitSection) else "sources"


def _validation_kind(value: Any) -> str:
    held_out = isinstance(value, SplitSection) or (
        isinstance(value, dict) and "sources" not in value
    )
    return "split" if held_out else "sources"


ValidationSection = Annotated[
    Annotated[SplitSection, Tag("split")] | Annotated[ValidationSources, Tag("sources")],
    Discriminator(_validation_kind),
    BeforeValidator(
        _as_validation, json_schema_input_type=SplitSection | ValidationSources | _Written
    ),
    Expected("`{fraction: 0.05}`, a path, a source, or a list of sources"),
]


TestSection = Annotated[
    Annotated[SplitSection, Tag("split")] | Annotated[tuple[SourceSection, ...], Tag("sources")],
    Discriminator(_test_kind),
    BeforeValidator(_as_test, json_schema_input_type=SplitSection | _Written),
    Expected("`{fraction: 0.1}`, a path, a source, or a list of sources"),
]
Filters = Annotated[
    FiltersSection,
    BeforeValidator(as_filters, json_schema_input_type=FiltersSection | Literal["off", "auto"]),
]


class DataSection(Section):
    """Where rows come from and how they become tokens."""

    train: TrainSources
    """Rows to learn from: a path, a source, or a list of them."""
    mixture: MixtureSection = MixtureSection()
    """How much of the run each of several sources is."""
    replay: ReplaySources = ()
    """General rows mixed in against forgetting, as a fraction of the tokens."""
    augment: AugmentSection = AugmentSection()
    """Changed copies of training rows, made after rows were held out; off by default."""
    validation: ValidationSection = SplitSection()
    """Rows to judge by: `{fraction: 0.05, by: random}`, or a source."""
    test: TestSection = ()
    """Rows looked at once, at the end: a source, or `{fraction: 0.1, by: random}`."""
    benchmarks: Sources = ()
    """Rows that must not be trained on; nothing is measured on them."""
    max_length: Count = 1024
    """Longest row, in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer row, each one counted; raw text is cut into pieces, never lost."""
    bad_rows: Literal["error", "skip"] = "error"
    """What happens to a row that cannot be read; each skipped one is listed as file:line."""
    packing: bool = True
    """Short rows share a forward pass without padding each; they never see each other."""
    leakage: Literal["error", "warn", "remove", "off"] = "error"
    """What happens when a row of validation, test or benchmarks is also a training row."""
    duplicates: Literal["warn", "error", "remove", "off"] = "warn"
    """What happens when training rows repeat each other; `remove` keeps the first of each."""
    filters: Filters = FiltersSection()
    """Training rows to leave out for what they say; `auto` turns all on but `languages`."""
    check_labels: Literal["auto", "on", "off"] = "auto"
    """Suspect labels of classes by what the base sees: of 2,000 rows at most, `on` of 20,000."""

    @model_validator(mode="after")
    def _shares_that_add_up(self) -> Self:
        weighted = [source.weight != "auto" for source in self.train]
        if any(weighted) and not all(weighted):
            bare = weighted.index(False)
            msg = f"`train.{bare}` has no `weight`, but another source has; weigh all or none"
            raise ValueError(msg)
        if any(weighted) and self.mixture.temperature != 1:
            msg = "`mixture.temperature` and the sources' `weight` both set the shares; keep one"
            raise ValueError(msg)
        if (total := sum(source.fraction for source in self.replay)) >= 1:
            msg = f"`replay` takes {total:g} of the tokens, which leaves none for `train`"
            raise ValueError(msg)
        return self
