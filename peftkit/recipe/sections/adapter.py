"""The `adapter` section: which few parameters train, one model a method."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from peftkit.recipe.sections.section import Auto, Count, Expected, PositiveNumber, Section, Share


def _one_as_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _as_tuple(value)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class LoraSection(Section):
    """Low-rank update of linear layers (Hu et al., 2021)."""

    method: Literal["lora"] = "lora"
    rank: Count = 16
    """Width of the update; capacity and size grow linearly with it."""
    alpha: PositiveNumber | Auto = "auto"
    """The update is scaled by `alpha / rank`; `auto` is twice the rank."""
    dropout: Share = 0.0
    """Share of the update's inputs dropped while training."""
    targets: Annotated[
        tuple[str, ...],
        Field(min_length=1),
        BeforeValidator(_one_as_many, json_schema_input_type=str | tuple[str, ...]),
        Expected("`all-linear`, or names of layers such as `[q_proj, v_proj]`"),
    ] = ("all-linear",)
    """`all-linear`, or names of layers to adapt (`q_proj`), matched at a dot boundary."""
    layers: Literal["all", "upper-half"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Which blocks carry the adapter: `all`, `upper-half`, or a list of block numbers."""

    @model_validator(mode="after")
    def _settle_alpha(self) -> Self:
        if self.alpha == "auto":
            object.__setattr__(self, "alpha", 2.0 * self.rank)
        return self


class FullSection(Section):
    """Every parameter trains: the upper bound, and how a base is pretrained."""

    method: Literal["full"]


def _method(value: Any) -> str | None:
    if isinstance(value, dict):
        named = value.get("method", "lora")
        return named if isinstance(named, str) else None
    return getattr(value, "method", None)


AdapterSection = Annotated[
    Annotated[LoraSection, Tag("lora")] | Annotated[FullSection, Tag("full")],
    Discriminator(_method),
]
