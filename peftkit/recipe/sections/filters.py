"""The `data.filters` section: which training rows are left out for what they say."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from peftkit.recipe.sections.section import Auto, Count, Expected, Section, Share

Off = Literal["off"]

Codes = Annotated[
    Off | Annotated[tuple[str, ...], Field(min_length=1)],
    BeforeValidator(
        lambda value: tuple(value) if isinstance(value, list) else value,
        json_schema_input_type=Off | tuple[str, ...],
    ),
    Expected("`off`, or a list of languages such as `[en, de]`"),
]


class FiltersSection(Section):
    """Training rows that are left out, each counted and the first listed; all are off by default.

    Of a row with an answer, the answer is judged, else its text. Rows to judge by are left alone,
    unless they are held out of the training rows. `auto` is a limit that hardly any good row fails.
    """

    shortest: Off | Auto | Count = "off"
    """Fewest characters of the prompt, and of the answer; `auto`: 3."""
    longest: Off | Auto | Count = "off"
    """Most characters of prompt and answer together; `auto`: 20,000."""
    repeated_words: Off | Auto | Share = "off"
    """Largest share of the letters in the commonest pair of words, from 50 words; `auto`: 0.2."""
    repeated_lines: Off | Auto | Share = "off"
    """Largest share of lines that stood there before, from 4 lines on; `auto`: 0.3."""
    refusals: Literal["off", "on"] = "off"
    """`on` leaves out answers such as "As an AI language model, I cannot"."""
    links: Off | Auto | Share = "off"
    """Largest share of characters in web addresses; `auto`: 0.5."""
    markup: Off | Auto | Share = "off"
    """Largest share of characters in tags of HTML or forums; `auto`: 0.1."""
    languages: Codes = "off"
    """Languages that are kept, such as `[en, de]`; a row whose language is not clear stays."""


def as_filters(value: Any) -> Any:
    """`off` and `auto` for all at once, as a section."""
    if value not in ("off", "auto"):
        return value
    names = [name for name in FiltersSection.model_fields if name != "languages"]
    return {name: "on" if name == "refusals" and value == "auto" else value for name in names}
