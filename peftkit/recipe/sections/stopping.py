"""Parts of the `train` section: when a run ends early, and which weights it ends with."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from peftkit.recipe.sections.section import Count, Expected, PositiveNumber, Section


class StoppingSection(Section):
    """What ends a run before its last step; each is looked at after every evaluation."""

    patience: Count | Literal["none"] = "none"
    """Evaluations in a row without a lower validation loss than before; the base's own counts."""
    forgetting: PositiveNumber | Literal["none"] = "none"
    """Nats by which loss on a source of `evaluate.remember` may rise above the base's."""
    overfitting: PositiveNumber | Literal["none"] = "none"
    """Share above its best by which validation loss may be while training loss goes on falling."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.patience, self.forgetting, self.overfitting) == ("none", "none", "none"):
            msg = "one of `patience`, `forgetting` and `overfitting` says what to stop at"
            raise ValueError(msg)
        return self


class AverageSection(Section):
    """Weights averaged over the run; one of the two."""

    last: Annotated[int, Field(ge=2)] | Literal["none"] = "none"
    """So many weights: those of the end, and of the saves every `save_every` steps before it."""
    ema: Annotated[float, Field(gt=0, lt=1)] | Literal["none"] = "none"
    """An exponential mean over all steps: what each keeps of the mean before it, as 0.99."""

    @model_validator(mode="after")
    def _one_mean(self) -> Self:
        if (self.last == "none") == (self.ema == "none"):
            msg = "either `last` or `ema` says what to average; keep one"
            raise ValueError(msg)
        return self


Stopping = Annotated[
    Literal["none"] | StoppingSection,
    Expected("`none`, or a section such as `{patience: 3, forgetting: 0.2}`"),
]
Average = Annotated[
    Literal["none"] | AverageSection,
    Expected("`none`, or a section such as `{last: 3}` or `{ema: 0.99}`"),
]
