"""The `data.augment` section: changed copies of training rows, for small sets of texts."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from peftkit.recipe.sections.section import Count, Expected, Section

PLACE = "{text}"
"""Where a template takes the text."""

Rate = Annotated[float, Field(ge=0, le=1)]


def _each_with_a_place(value: Any) -> Any:
    """A text or a list of them as a tuple, where every one takes the text once and says more."""
    if not isinstance(value, str | list | tuple):
        return value
    texts = (value,) if isinstance(value, str) else tuple(value)
    told = [text for text in texts if isinstance(text, str)]
    if any(text.count(PLACE) != 1 or text.strip() == PLACE for text in told):
        raise ValueError(f"each template must say `{PLACE}` once, and something beside it")
    if len(set(told)) < len(told):
        raise ValueError("each template must be there once")
    return texts


Templates = Annotated[
    tuple[str, ...],
    BeforeValidator(_each_with_a_place, json_schema_input_type=str | tuple[str, ...]),
    Expected("a text such as `customer wrote: {text}`, or a list of them"),
]


class AugmentSection(Section):
    """What is changed in copies of training rows; only ever in what the model is given to read."""

    copies: Annotated[int, Field(ge=0, le=100)] = 0
    """Changed copies of each training row, learned beside it; 0 makes none."""
    drop: Rate = 0.1
    """Share of the words that a copy leaves out; never all, and none with a digit in it."""
    typos: Rate = 0.05
    """Share of the words in which two letters change places, or one is missed or hit beside."""
    case: Rate = 0.05
    """Share of the words in other case."""
    spacing: Rate = 0.05
    """Share of the gaps between words that are lost or doubled."""
    emoji: Rate = 0.5
    """Share of the emoji and emoticons that are written another way."""
    templates: Templates = ()
    """Texts around a row's own, such as `customer wrote: {text}`, that fill up small classes."""
    fill: Literal["largest"] | Count = "largest"
    """Rows that templates fill each class up to: those of the `largest` class, or a number."""
