"""What every section of a recipe shares: strictness, and the few value types of the language."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]


class Section(BaseModel):
    """Base of every section: no unknown keys, no coercion, no mutation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


@dataclass(frozen=True)
class Expected:
    """Says in a message what a value may be, where its type alone would not say it well."""

    phrase: str


PositiveNumber = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
