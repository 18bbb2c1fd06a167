"""The `learn` section of a source: whose turns of a chat carry loss."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from peftkit.recipe.sections.section import Expected, Section


def _as_roles(value: Any) -> Any:
    """A role, or a list of them, as a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Roles = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
    BeforeValidator(_as_roles, json_schema_input_type=str | tuple[str, ...]),
    Expected("a role such as `assistant`, or a list of them"),
]


class LearnSection(Section):
    """Which turns of a chat carry loss; `train: false` or `true` in a turn has the last word."""

    roles: Roles = ("assistant",)
    """Whose turns are learned."""
    turns: Literal["all", "last"] = "all"
    """`last` learns the last turn of these roles alone, and reads the others."""
