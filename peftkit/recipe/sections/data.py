"""The `data` section: rows to learn from, rows to judge by, and what to do with bad ones."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from peftkit.recipe.sections.filters import FiltersSection, as_filters
from peftkit.recipe.sections.section import Count, Expected, Section


class SourceSection(Section):
    """One place rows come from."""

    source: Annotated[str, Field(min_length=1, examples=["data/train.jsonl"])]
    """A jsonl, json, csv, tsv, parquet or txt file, a folder, or `hub:org/set@commit:split`."""
    format: Literal[
        "auto",
        "chat",
        "instruction",
        "completion",
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


class SplitSection(Section):
    """Validation rows held out of the training sources."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the rows held out."""
    by: Literal["random"] = "random"
    """`random` decides by each row's digest, so added rows never move an old one."""


class ValidationSources(Section):
    """Validation rows from files of their own."""

    sources: SomeSources
    """The files; a single one may be written as `source`."""


def _as_validation(value: Any) -> Any:
    if isinstance(value, Section):
        return value
    keys = value.keys() if isinstance(value, dict) else {"source"}
    if keys & {"source", "sources"} and keys & {"fraction", "by"}:
        msg = "either hold rows out with `fraction` and `by`, or name a `source`; keep one"
        raise ValueError(msg)
    return {"sources": value} if "source" in keys else value


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


Filters = Annotated[
    FiltersSection,
    BeforeValidator(as_filters, json_schema_input_type=FiltersSection | Literal["off", "auto"]),
]


class DataSection(Section):
    """Where rows come from and how they become tokens."""

    train: SomeSources
    """Rows to learn from: a path, a source, or a list of them."""
    validation: ValidationSection = SplitSection()
    """Rows to judge by: `{fraction: 0.05, by: random}`, or a source."""
    test: Sources = ()
    """Rows looked at once, at the end."""
    max_length: Count = 1024
    """Longest row, in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer row, each one counted; raw text is cut into pieces, never lost."""
    bad_rows: Literal["error", "skip"] = "error"
    """What happens to a row that cannot be read; each skipped one is listed as file:line."""
    packing: bool = True
    """Short rows share a forward pass without padding each; they never see each other."""
    leakage: Literal["error", "warn", "remove", "off"] = "error"
    """What happens when a validation or test row is also a training row."""
    filters: Filters = FiltersSection()
    """Training rows to leave out for what they say; `auto` turns all on but `languages`."""
    check_labels: Literal["auto", "on", "off"] = "auto"
    """Suspect labels of classes by what the base sees: of 2,000 rows at most, `on` of 20,000."""
