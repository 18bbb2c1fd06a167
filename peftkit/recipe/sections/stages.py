"""The `stages` section: trainings one after the other, each of which may start from an earlier."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, create_model, model_validator

from peftkit.recipe.quantized import refuse_what_cannot_work
from peftkit.recipe.sections.adapter import AdapterSection, LoraSection
from peftkit.recipe.sections.base import BaseSection
from peftkit.recipe.sections.data import DataSection
from peftkit.recipe.sections.evaluate import EvaluateSection
from peftkit.recipe.sections.section import Expected, Section
from peftkit.recipe.sections.train import TrainSection

SECTIONS = ("base", "adapter", "data", "train", "evaluate")
"""What a stage may say anew; at the top of a recipe with stages it is said for all of them."""
BASE, PREVIOUS = "base", "previous"
TAKEN = (BASE, PREVIOUS, "auto")
"""What `start_from` may say that is no name."""
How = Literal["auto", "continued", "folded", "stacked"]
_HOW = (
    "What becomes of what it starts from: `continued` trains that adapter on with a fresh "
    "optimizer, `folded` puts it into the weights of the base, `stacked` keeps it, frozen, under a "
    "new one. `auto` is `continued`, where there is something to start from."
)


class _Named(Section):
    """Where a stage stands in the order of stages."""

    name: Annotated[
        str,
        Field(pattern=r"^[a-z][a-z0-9_-]{0,47}$", examples=["domain"]),
        Expected("up to 48 lower-case letters, digits, `_` and `-`, a letter first"),
    ]
    """Names the stage and its folder, `stages/<name>`."""
    start_from: Annotated[
        str, Field(min_length=1), Expected("`base`, `previous` or the name of an earlier stage")
    ] = "auto"
    """`base`, `previous` or the name of an earlier stage; `auto` is `previous`, or of the first
    stage `base`."""


if TYPE_CHECKING:
    _Placed = _Named
else:  # a key that Python has a meaning for cannot be written as a field
    _Placed = create_model(
        "_Placed", __base__=_Named, **{"as": (How, Field(default="auto", description=_HOW))}
    )


class StageSection(_Placed):
    """One training of several; sections that it leaves out are those at the top of the recipe."""

    base: BaseSection
    """The base; only `task`, `labels` and `stop_tokens` may differ between stages."""
    adapter: AdapterSection = LoraSection()
    """The few parameters that train."""
    data: DataSection
    """Rows to learn from and to judge by."""
    train: TrainSection = TrainSection.model_validate({})
    """How long and how fast; each stage warms up and decays on its own."""
    evaluate: EvaluateSection = EvaluateSection()
    """What is measured, against what."""

    @model_validator(mode="after")
    def _that_can_work(self) -> Self:
        refuse_what_cannot_work(self)
        return self

    @property
    def how(self) -> str:
        """What `as` says, which Python cannot ask for by that name."""
        return str(getattr(self, "as"))
