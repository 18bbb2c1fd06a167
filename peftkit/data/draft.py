"""A row's tokens before the length policy, and what every format reads its columns with."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peftkit.data.control import Control, find_control
from peftkit.data.example import LONE_SURROGATE
from peftkit.recipe.sections.learn import LearnSection

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from peftkit.data.rows import Row
    from peftkit.recipe.sections.data import SourceSection


ANSWERS = LearnSection()
AS_TEXT = {"split_special_tokens": True}
"""How a tokenizer is told to take no text for one of its special tokens."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A text to be tokenized, together with those of other rows."""

    text: str
    special: bool = False
    """Whether the tokenizer adds what it adds to a text of its own."""
    templated: bool = False
    """Whether the template wrote it, so that control tokens in it are meant."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Token ids of a text, and where each character went if the tokenizer can say."""

    ids: list[int]
    places: Any = None
    """The `Encoding` of a fast tokenizer."""
    typed: int = 0
    """Control tokens that the text spells out, which were read as any other text."""
    problem: str = ""
    """Why the text cannot be used."""

    def first_token(self, character: int, end: int) -> int:
        """The first token that begins at a character or after it, if before the end of the text."""
        for place in range(character, end):
            token = self.places.char_to_token(place)
            if token is not None:
                begins: int = self.places.token_to_chars(token)[0]
                return int(token) + (begins < character)
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Reading:
    """What decides where rows are taken from, and nothing of what becomes of them."""

    fresh: bool = False
    """Whether tokens that an earlier run kept are made anew."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """Which commit of each data set on a hub is meant, by the name in the recipe."""


AS_IT_IS = Reading()


@dataclass(frozen=True, slots=True)
class Encoder:
    """A tokenizer, the ids that end an answer, the length policy, and the task of the base."""

    tokenizer: Any
    stops: frozenset[int]
    max_length: int
    too_long: str
    task: str = "causal-lm"
    labels: tuple[str, ...] = ()
    """The only ones a row may have; empty while any may come."""
    learn: LearnSection = ANSWERS
    control_tokens: str = "text"
    columns: tuple[str, ...] = ()
    """Whose values every example keeps, because rows are held out by them."""
    reading: Reading = AS_IT_IS
    _control: list[Control] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def control(self) -> Control:
        """What the tokenizer reads as control tokens, found out once."""
        if not self._control:
            self._control.append(find_control(self.tokenizer))
        return self._control[0]

    @property
    def end_id(self) -> int | None:
        """The token that ends a text, where the tokenizer has one."""
        found: int | None = self.tokenizer.eos_token_id
        return found

    def typed(self, values: Any) -> int:
        """Control tokens that the texts of a row spell out and that are not to be read as such."""
        return self.control.count(values) if self.control_tokens == "text" else 0

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, with the tokenizer's own additions only if asked for.

        Raises:
            UnusableError: it spells out a control token that cannot be read as text.
        """
        (found,) = self.encode_all([Ask(text, special)])
        if found.problem:
            raise UnusableError(found.problem)
        return found.ids

    def encode_all(self, asked: Sequence[Ask]) -> list[Answered]:
        """The tokens of many texts, in their order; few calls are far quicker than many."""
        typed = [0 if ask.templated else self.typed(ask.text) for ask in asked]
        kinds = [(ask.special, count > 0) for ask, count in zip(asked, typed, strict=True)]
        found: dict[int, Answered] = {}
        for kind in dict.fromkeys(kinds):
            places = [place for place, other in enumerate(kinds) if other == kind]
            asks = [(asked[place].text, typed[place]) for place in places]
            found |= zip(places, self._encode_alike(asks, special=kind[0]), strict=True)
        return [found[place] for place in range(len(asked))]

    def _encode_alike(self, asks: list[tuple[str, int]], *, special: bool) -> list[Answered]:
        texts, typed = [text for text, _ in asks], [count for _, count in asks]
        batch = self.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            verbose=False,
            **(AS_TEXT if any(typed) else {}),
        )
        problems = [self._left_over(text) if count else "" for text, count in asks]
        encodings = batch.encodings or [None] * len(texts)
        return list(map(Answered, batch["input_ids"], encodings, typed, problems))

    def as_text(self, *texts: str) -> dict[str, bool]:
        """How to call the tokenizer so that it reads no control token in these texts.

        Raises:
            UnusableError: it cannot be told not to.
        """
        typed = bool(self.typed(texts))
        if typed and (problem := "".join(map(self._left_over, texts))):
            raise UnusableError(problem)
        return AS_TEXT if typed else {}

    def _left_over(self, text: str) -> str:
        """What is wrong with a text of which a control token is left however it is read."""
        ids = self.tokenizer(text, add_special_tokens=False, **AS_TEXT)["input_ids"]
        left = next((token for token in ids if token in self.control.ids), None)
        return "" if left is None else refuse_typed(self.tokenizer.convert_ids_to_tokens(left))

    def for_source(self, source: SourceSection) -> Encoder:
        """The same, with what one source says of its rows."""
        return replace(self, learn=source.learn, control_tokens=source.control_tokens)


def refuse_typed(token: str) -> str:
    """Why a row that spells out a control token cannot be used."""
    return (
        f"spells out `{token}`, which this tokenizer cannot read as text; `control_tokens: tokens` "
        "of the source takes it for the token"
    )


class UnusableError(ValueError):
    """A row that has the columns but not the content."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens of one row before the length policy."""

    ids: Sequence[int] | NDArray[np.int32]
    trained: Sequence[bool] | NDArray[np.bool_]
    text: str
    prompt_tokens: int = 0
    prompt: str = ""
    answer: str | None = None
    plain: bool = False
    """Whether a long one is cut into pieces, of which none is lost."""
    parts: tuple[int, ...] = ()
    roles: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    answers: tuple[tuple[int, int], ...] = ()
    """From where to where each text goes that is learned up to a stop token, that included."""
    typed: int = 0
    """Control tokens that the row spells out and that were read as text."""
    unsure: bool = False
    """Whether it is to be compared with the tokenizer's own way."""
    cut: int = 0
    """Tokens that were taken off already; what reads the row knew how."""
    over: int = 0
    """Tokens above what is allowed, where the row is not to be cut."""


Steps = Generator[tuple[Ask, ...], list[Answered], Draft]
"""A row on its way: it asks for texts to be tokenized, and ends as a draft."""


def words(row: Row, column: str, *, may_be_empty: bool = False) -> str:
    """The text of a column.

    Raises:
        UnusableError: it holds no text, or text that no tokenizer takes.
    """
    value = row.values.get(column, "")
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise UnusableError(f"column `{column}`: expected text, got `{str(value)[:40]}`")
    if not value.strip() and not may_be_empty:
        raise UnusableError(f"column `{column}` is empty")
    if not value.isascii() and (half := LONE_SURROGATE.search(value)):
        raise UnusableError(f"column `{column}` holds half a character (U+{ord(half[0]):04X})")
    return value
