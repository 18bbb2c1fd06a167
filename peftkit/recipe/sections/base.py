"""The `base` section: the pretrained model that everything else adapts."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from peftkit.recipe.sections.section import Auto, Expected, Section

Task = Literal[
    "causal-lm",
    "masked-lm",
    "seq2seq",
    "classification",
    "multi-label",
    "token-classification",
    "regression",
    "embedding",
]
LABELLED = ("classification", "multi-label", "token-classification")
"""Tasks whose answers are names from a list."""


def _as_names(value: Any) -> Any:
    """A YAML list as a tuple, and its numbers as they are written."""
    if not isinstance(value, list):
        return value
    return tuple(str(item) if type(item) is int else item for item in value)


Labels = Annotated[
    Auto | Annotated[tuple[str, ...], Field(min_length=2)],
    BeforeValidator(_as_names, json_schema_input_type=Auto | tuple[str | int, ...]),
    Expected("`auto`, or two names or more such as `[negative, positive]`"),
]


class BaseSection(Section):
    """The frozen model."""

    model: Annotated[str, Field(min_length=1, examples=["builtin:tiny"])]
    """`builtin:tiny`, a folder, or a hub id."""
    revision: str = "main"
    """Commit, tag or branch of a hub model; `lock.json` records the commit it meant."""
    task: Task = "causal-lm"
    """What the model is asked to do; its head trains beside the adapter where no base has one."""
    labels: Labels = "auto"
    """Names of the classes or tags; `auto` takes those of the training rows, in sorted order."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` keeps the shape and throws the knowledge away: the from-scratch control."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the base; `auto`: bfloat16 where the machine is fast in it, else float32."""

    @model_validator(mode="after")
    def _labels_where_there_are_any(self) -> Self:
        if self.labels == "auto":
            return self
        if self.task not in LABELLED:
            msg = f"`labels` are for {', '.join(LABELLED)}; a {self.task} base has none"
            raise ValueError(msg)
        if len(set(self.labels)) < len(self.labels):
            msg = "`labels` names one of them twice"
            raise ValueError(msg)
        return self
