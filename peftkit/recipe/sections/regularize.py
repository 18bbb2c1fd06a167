"""The entries of `train.regularize`: what is added to the loss against going too far."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from peftkit.recipe.sections.data import SourceSection
from peftkit.recipe.sections.section import Count, Expected, Section
from peftkit.recipe.spelling import nearest

Strength = Annotated[float, Field(ge=0)]


class L2spSection(Section):
    """Pull to the base: half of `strength` times the squared size of the change of the weights."""

    strength: Strength
    """Times half of the sum of squares; of an adapter, of what it adds to each layer."""
    head: Strength = 0.0
    """The same for a new head, which has no start to be pulled to, and is pulled to 0."""


class GeneralSection(SourceSection):
    """Rows of general text, beside those that are learned."""

    source: Annotated[str, Field(min_length=1, examples=["general.txt"])]
    """Text of the kind that must not be forgotten; rows that are judged by are left out of it."""


class EwcSection(GeneralSection):
    """Pull to the base where general text depends on it (elastic weight consolidation)."""

    strength: Strength
    """Times half of the sum of squared changes, each times how much the text depends on it."""
    rows: Count = 64
    """Rows of the source that say how much it does."""


class KlSection(GeneralSection):
    """Answer general text as the base does (distillation)."""

    strength: Strength
    """Times the divergence from the base, in nats a token."""
    rows: Count = 4
    """Rows of the source that each update looks at besides its own."""
    top: Count | Literal["all"] = "all"
    """Tokens that are told apart at each place, the base's likeliest; the others count as one."""


class RDropSection(Section):
    """Two passes with other dropout, which are to agree (R-Drop)."""

    strength: Strength
    """Times the divergence of the two passes, both ways."""


class NeftuneSection(Section):
    """Noise on the embeddings of what is read, while training only (NEFTune)."""

    strength: Strength
    """Size of a text's noise; each number gets it over the root of how many there are."""


class LabelSmoothingSection(Section):
    """A share of each target is spread over all classes or tokens."""

    strength: Annotated[float, Field(ge=0, lt=1)]
    """The share."""


class DecayToInitSection(Section):
    """Pull the parameters themselves to where they started."""

    strength: Strength
    """Times half of the sum of squares; of LoRA, of its two factors and not of their product."""


def _as_strength(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"strength": value} if number else value


def _short(kind: Any) -> BeforeValidator:
    """Lets a number stand for a section that has this strength; `kind` is for editors."""
    return BeforeValidator(_as_strength, json_schema_input_type=kind)


_NUMBER = Expected("a strength such as `0.1`, or a section such as `{strength: 0.1}`")
_SOURCE = Expected("a section such as `{strength: 0.1, source: general.txt}`")


class L2sp(Section):
    """Entry of that name."""

    l2sp: Annotated[L2spSection, _short(float | L2spSection), _NUMBER]
    """Pull to the base: a number, or `{strength: 0.01, head: 0.01}`."""


class Ewc(Section):
    """Entry of that name."""

    ewc: Annotated[EwcSection, _short(EwcSection), _SOURCE]
    """Pull to the base where general text depends on it; the source is that text."""


class Kl(Section):
    """Entry of that name."""

    kl: Annotated[KlSection, _short(KlSection), _SOURCE]
    """Answer general text as the base does; the source is that text."""


class RDrop(Section):
    """Entry of that name."""

    r_drop: Annotated[RDropSection, _short(float | RDropSection), _NUMBER]
    """Two passes with other dropout are to agree."""


class Neftune(Section):
    """Entry of that name."""

    neftune: Annotated[NeftuneSection, _short(float | NeftuneSection), _NUMBER]
    """Noise on what is read; the paper takes 5 to 15."""


class LabelSmoothing(Section):
    """Entry of that name."""

    label_smoothing: Annotated[
        LabelSmoothingSection, _short(float | LabelSmoothingSection), _NUMBER
    ]
    """Share of each target that is spread over all others; usually 0.1."""


class DecayToInit(Section):
    """Entry of that name."""

    decay_to_init: Annotated[DecayToInitSection, _short(float | DecayToInitSection), _NUMBER]
    """Pull parameters to where they started."""


KINDS = ("l2sp", "ewc", "kl", "r_drop", "neftune", "label_smoothing", "decay_to_init")
"""The names of entries."""


def _kind(value: Any) -> str:
    found = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    return next((str(name) for name in found if name in KINDS), "")


def _named(value: Any) -> Any:
    if isinstance(value, Section):
        return value
    known = ", ".join(f"`{name}`" for name in KINDS)
    if not isinstance(value, dict) or len(value) != 1:
        msg = f"expected one of {known} and its strength, such as `{{l2sp: 0.01}}`"
        raise ValueError(msg)
    (name,) = value
    if name not in KINDS:
        close = nearest(str(name), list(KINDS))
        instead = f"did you mean `{close}`?" if close else f"expected one of {known}"
        msg = f"`{name}` is not known; {instead}"
        raise ValueError(msg)
    return value


Entry = Annotated[
    Annotated[L2sp, Tag("l2sp")]
    | Annotated[Ewc, Tag("ewc")]
    | Annotated[Kl, Tag("kl")]
    | Annotated[RDrop, Tag("r_drop")]
    | Annotated[Neftune, Tag("neftune")]
    | Annotated[LabelSmoothing, Tag("label_smoothing")]
    | Annotated[DecayToInit, Tag("decay_to_init")],
    Discriminator(_kind),
    BeforeValidator(_named),
]


def acting(entries: Sequence[Any]) -> dict[str, Any]:
    """The settings of each entry by its name, those of strength 0 left out: they do nothing."""
    named = {_kind(entry): getattr(entry, _kind(entry)) for entry in entries}
    return {name: settings for name, settings in named.items() if settings.strength}


def twice(entries: Sequence[Any]) -> str | None:
    """A name that stands more than once, if one does."""
    names = [_kind(entry) for entry in entries]
    return next((name for name in names if names.count(name) > 1), None)


def general_sources(entries: Sequence[Any]) -> dict[str, GeneralSection]:
    """The general text that entries look at, by their names."""
    found = acting(entries).items()
    return {name: each for name, each in found if isinstance(each, GeneralSection)}
