"""What a recipe may say: the sections in the order they happen."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from peftkit.recipe.quantized import refuse_what_cannot_work
from peftkit.recipe.sections.adapter import AdapterSection, LoraSection
from peftkit.recipe.sections.base import BaseSection
from peftkit.recipe.sections.data import DataSection
from peftkit.recipe.sections.evaluate import EvaluateSection
from peftkit.recipe.sections.publish import PublishSection
from peftkit.recipe.sections.section import Name, Section
from peftkit.recipe.sections.train import TrainSection


class Recipe(Section):
    """One whole run, top to bottom in the order it happens."""

    name: Name
    """Names the run folder, `runs/<name>`; the file's stem unless given."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds data order, dropout, initialization and intervals."""
    base: BaseSection
    """The frozen model."""
    adapter: AdapterSection = LoraSection()
    """The few parameters that train."""
    data: DataSection
    """Rows to learn from and to judge by."""
    train: TrainSection = TrainSection.model_validate({})
    """How long and how fast."""
    evaluate: EvaluateSection = EvaluateSection()
    """What is measured, against what."""
    publish: PublishSection = PublishSection()
    """What the model card adds."""

    @model_validator(mode="after")
    def _that_can_work(self) -> Self:
        refuse_what_cannot_work(self)
        return self
