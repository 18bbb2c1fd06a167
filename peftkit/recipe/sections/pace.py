"""How fast single parts learn, and when each of them begins to: parts of the `train` section."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from peftkit.recipe.sections.section import Count, Expected, PositiveNumber, Section


class GroupSection(Section):
    """Parameters that learn faster or slower than the rest."""

    match: Annotated[str, Field(min_length=1)]
    """A pattern of names in the base, such as `*.mlp.*`; one that fits none is an error."""
    times: PositiveNumber
    """What their learning rate is multiplied by."""


class ByEpoch(Section):
    """The next block begins to learn with each epoch."""

    every: Literal["epoch"]
    """`epoch`: the schedule follows from the data alone."""


class OnPlateau(Section):
    """The next block begins to learn when validation stops improving."""

    every: Literal["plateau"]
    """`plateau`: an evaluation that is no better than the best one since the last block."""
    patience: Count = 1
    """How many such evaluations in a row it takes."""


def _every(value: Any) -> str | None:
    if isinstance(value, dict):
        named = value.get("every", "epoch")
        return named if isinstance(named, str) else None
    return getattr(value, "every", "none")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Groups = Annotated[
    tuple[GroupSection, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=tuple[GroupSection, ...]),
    Expected('a list such as `[{match: "*.mlp.*", times: 0.5}]`'),
]
Unfreeze = Annotated[
    Annotated[Literal["none"], Tag("none")]
    | Annotated[ByEpoch, Tag("epoch")]
    | Annotated[OnPlateau, Tag("plateau")],
    Discriminator(_every),
    Expected("`none`, `{every: epoch}` or `{every: plateau}`"),
]
NOT_GRADUAL = "none"
"""What `unfreeze` says where everything learns from the first step."""
FIND = "find"
"""What `learning_rate` says where a range test is to find it."""
LearningRate = Annotated[PositiveNumber | Literal["find"], Expected("a number above 0, or `find`")]
Ratio = Annotated[float, Field(gt=0, le=1), Expected("a share above 0 and up to 1, such as `0.9`")]
