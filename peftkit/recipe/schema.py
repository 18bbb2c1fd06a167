"""What a recipe may say: the sections in the order they happen."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from peftkit.recipe.ending import refuse_what_cannot_end
from peftkit.recipe.following import refuse_what_cannot_follow
from peftkit.recipe.quantized import refuse_what_cannot_work
from peftkit.recipe.regularized import refuse_what_cannot_be_added
from peftkit.recipe.sections.adapter import AdapterSection, LoraSection
from peftkit.recipe.sections.base import BaseSection
from peftkit.recipe.sections.data import DataSection
from peftkit.recipe.sections.evaluate import EvaluateSection
from peftkit.recipe.sections.publish import PublishSection
from peftkit.recipe.sections.section import Expected, Name, Section
from peftkit.recipe.sections.stages import SECTIONS, StageSection
from peftkit.recipe.sections.train import TrainSection

LONGEST_NAME = 47
"""Characters of a recipe's name in that of a stage."""


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
    stages: Annotated[
        tuple[StageSection, ...], Expected("a list of stages such as `[{name: domain}]`")
    ] = ()
    """Trainings one after the other, each with what it changes of the sections above."""

    @model_validator(mode="after")
    def _that_can_work(self) -> Self:
        refuse_what_cannot_work(self)
        refuse_what_cannot_follow(self.stages)
        refuse_what_cannot_end(self)
        refuse_what_cannot_be_added(self)
        return self

    def stage(self, number: int) -> "Recipe":
        """One stage as a recipe of its own, which as yet starts from the base."""
        stage = self.stages[number]
        sections = {name: getattr(stage, name) for name in SECTIONS}
        name = f"{self.name[:LONGEST_NAME]}-{stage.name}"
        return self.model_copy(update={**sections, "name": name, "stages": ()})
