"""The `method` section of a merge: one model a method, and how sums differ from each other."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from peftkit.recipe.sections.section import Count, PositiveNumber, Section
from peftkit.recipe.shape import members

Kept = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(gt=0, le=1)]
Scope = Literal["model", "tensor", "row"]
Combine = Literal["mean", "sum", "weighted_mean"]


class ElectSection(Section):
    """How the sign of an entry is chosen among those that the changes have there."""

    by: Literal["mass", "count"] = "mass"
    """Changes vote with their sizes, or one vote each."""
    weights: Literal["before", "after"] = "before"
    """Whether the numbers of the formula count before the election, or after it."""
    tie: Literal["plus", "majority"] = "majority"
    """The sign where both sides are even: plus, or the one that most entries of the model have."""


class Scaled(Section):
    """A method whose result is multiplied by a number."""

    scaling: float = 1.0
    """What the merged change is multiplied by."""


class Trimmed(Scaled):
    """A method that keeps a share of each change's entries."""

    keep: Kept = 0.2
    """Share of the entries that is kept."""


class Elected(Scaled):
    """A method that merges the entries that agree on a sign."""

    elect: ElectSection = ElectSection()
    """How signs are chosen."""
    combine: Combine = "mean"
    """What becomes of the entries that agree."""


class Dropped(Scaled):
    """A method that keeps entries by chance; the chance is of the recipe's `seed`."""

    keep: Probability = 0.5
    """Probability that an entry is kept."""


class Windowed(Scaled):
    """A method that keeps small entries less often."""

    keep: Kept = 0.5
    """Mean probability of the entries of a row."""
    window: Kept = 0.2
    """From the probability of a row's smallest entry to that of its largest."""


class SumMethod(Section):
    """Add what was learned, each part times its weight; the exact sum."""

    name: Literal["sum"] = "sum"
    normalize: bool = False
    """Divide the numbers by their sum."""


class TaskArithmeticMethod(Scaled):
    """Add what was learned, and scale the whole."""

    name: Literal["task-arithmetic"]


class TiesMethod(Trimmed, Elected):
    """Keep the largest changes, and merge those that agree on a sign."""

    name: Literal["ties"]
    scope: Scope = "model"
    """Where the largest are sought: in the whole model, in each tensor, in each row."""


class TiesOfPaperMethod(Trimmed):
    """TIES as published: one trim of the whole model."""

    name: Literal["ties@paper"]


class TiesOfMergekitMethod(Trimmed):
    """TIES as in mergekit 0.1.4."""

    name: Literal["ties@mergekit"]


class TiesOfPeftMethod(Trimmed):
    """TIES as in peft 0.21, on changes as they act."""

    name: Literal["ties@peft"]


class MagnitudeMethod(Trimmed):
    """Add the largest changes alone."""

    name: Literal["magnitude"]
    scope: Scope = "tensor"
    """Where the largest are sought: in the whole model, in each tensor, in each row."""


class BreadcrumbsMethod(Scaled):
    """Add changes without outliers and without noise."""

    name: Literal["breadcrumbs"]
    keep: Kept = 0.15
    """Share of the entries that is kept."""
    top: Kept = 0.01
    """Share of the entries that is too large; fewer where `keep` leaves no room."""
    scope: Scope = "tensor"
    """Where both are sought: in the whole model, in each tensor, in each row."""


class DareMethod(Dropped):
    """Drop entries by chance, and make up for them."""

    name: Literal["dare"]


class DareTiesMethod(Dropped, Elected):
    """Drop entries by chance, then merge those that agree on a sign."""

    name: Literal["dare-ties"]


class DellaMethod(Windowed, Elected):
    """Drop small entries more often, then merge those that agree on a sign."""

    name: Literal["della"]


class DellaLinearMethod(Windowed):
    """Drop small entries more often, and add the rest."""

    name: Literal["della-linear"]


class SceMethod(Scaled):
    """Keep where changes differ most, and weigh each by its size."""

    name: Literal["sce"]
    keep: Kept = 0.1
    """Share of the entries of each tensor: those that differ most between the changes."""


class SlerpMethod(Section):
    """Go from one change to another on the arc between them."""

    name: Literal["slerp"]


class KarcherMethod(Section):
    """The mean direction of several changes."""

    name: Literal["karcher"]
    iterations: Count = 100
    """The most steps toward it."""
    tolerance: PositiveNumber = 1e-8
    """Length of a step that is the last."""


class ModelStockMethod(Section):
    """The mean, shortened by how little the changes agree."""

    name: Literal["model-stock"]


class CoreMethod(Section):
    """The weighted sum in the space that all changes share."""

    name: Literal["core"]


class KnotsMethod(Section):
    """The weighted sum along the output directions that all share."""

    name: Literal["knots"]


class SvdTrimMethod(Scaled):
    """Add the strongest directions of each change."""

    name: Literal["svd-trim"]
    energy: Probability = 0.9
    """Share of the squared singular values that each change keeps, at least."""


class TsvMethod(Scaled):
    """Make the directions of each change orthogonal to the others', and add."""

    name: Literal["tsv"]


class IsoCMethod(Scaled):
    """Add, then make all directions equally strong."""

    name: Literal["iso-c"]


class WudiMethod(Scaled):
    """Disturb each change least on the inputs that it reacts to."""

    name: Literal["wudi"]


class KnotsTiesMethod(TiesMethod):
    """TIES along the output directions that all changes share."""

    name: Literal["knots-ties"]  # type: ignore[assignment]  # the settings are the same


class CoreTiesMethod(TiesMethod):
    """TIES along the directions that all changes share on both sides."""

    name: Literal["core-ties"]  # type: ignore[assignment]  # the settings are the same


def _written(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _name(value: Any) -> str | None:
    if isinstance(value, dict):
        named = value.get("name", "sum")
        return named if isinstance(named, str) else None
    return getattr(value, "name", None)


_Method = Annotated[
    Annotated[SumMethod, Tag("sum")]
    | Annotated[TaskArithmeticMethod, Tag("task-arithmetic")]
    | Annotated[TiesMethod, Tag("ties")]
    | Annotated[TiesOfPaperMethod, Tag("ties@paper")]
    | Annotated[TiesOfMergekitMethod, Tag("ties@mergekit")]
    | Annotated[TiesOfPeftMethod, Tag("ties@peft")]
    | Annotated[MagnitudeMethod, Tag("magnitude")]
    | Annotated[BreadcrumbsMethod, Tag("breadcrumbs")]
    | Annotated[DareMethod, Tag("dare")]
    | Annotated[DareTiesMethod, Tag("dare-ties")]
    | Annotated[DellaMethod, Tag("della")]
    | Annotated[DellaLinearMethod, Tag("della-linear")]
    | Annotated[SceMethod, Tag("sce")]
    | Annotated[SlerpMethod, Tag("slerp")]
    | Annotated[KarcherMethod, Tag("karcher")]
    | Annotated[ModelStockMethod, Tag("model-stock")]
    | Annotated[CoreMethod, Tag("core")]
    | Annotated[KnotsMethod, Tag("knots")]
    | Annotated[SvdTrimMethod, Tag("svd-trim")]
    | Annotated[TsvMethod, Tag("tsv")]
    | Annotated[IsoCMethod, Tag("iso-c")]
    | Annotated[WudiMethod, Tag("wudi")]
    | Annotated[KnotsTiesMethod, Tag("knots-ties")]
    | Annotated[CoreTiesMethod, Tag("core-ties")],
    Discriminator(_name),
]
NAMES = tuple(tag for tag, _ in members(_Method))
"""Every method that a recipe can name."""
MergeMethod = Annotated[
    _Method,
    BeforeValidator(_written, json_schema_input_type=_Method | Literal.__getitem__(NAMES)),
]
