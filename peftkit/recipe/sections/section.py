"""What every section of a recipe shares: strictness, and the few value types of the language."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Auto = Literal["auto"]


class Section(BaseModel):
    """Base of every section: no unknown keys, no coercion, no mutation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        serialize_by_alias=True,  # of keys such as `as`, which are no names in Python
    )


@dataclass(frozen=True)
class Expected:
    """Says in a message what a value may be, where its type alone would not say it well."""

    phrase: str


PositiveNumber = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"),
    Expected("up to 96 letters, digits, `.`, `_` and `-`, a letter or digit first"),
]


def refused(problems: Mapping[tuple[str | int, ...], str]) -> ValidationError:
    """What pydantic raises for keys at these places, so that messages find their lines."""
    return ValidationError.from_exception_data(
        "Recipe",
        [
            {
                "type": "value_error",
                "loc": place,
                "input": None,
                "ctx": {"error": ValueError(sentence)},
            }
            for place, sentence in problems.items()
        ],
    )
