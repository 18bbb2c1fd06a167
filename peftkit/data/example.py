"""A row as the model sees it: token ids, which of them carry loss, and where it came from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IGNORED = -100
"""Target id of a token that carries no loss: padding, or a prompt that is not trained on."""
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half a character, which JSON may hold and no tokenizer takes."""
PUNCTUATION = re.escape(
    ".,;:!?…'\"“”\u2018\u2019«»()—–_`¡¿。、「」『』\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
)
"""What prose may differ in and stay the same; `=`, `-` or `#` make another formula or molecule."""
CONTROL = r"\x00-\x1f\x7f-\x9f"
HYPHEN = r"(?<=[^\W\d_]{2})-(?=[^\W\d_])|(?<=[^\W\d_])-(?=[^\W\d_]{2})"
"""Within a word, as in `top-up`; `x-y`, `3-4` and `a - b` keep theirs."""
CLOSING = r"(?<=\d)[+&](?=\s*(?:[^\W\d_]{4,}+(?!\()|[^\w\s\[\](){}<>=*/^$\\-]|$))"
"""Behind a number and before no other operand, as in `18+ only`; `2+3` and `[NH4+]` keep theirs."""
WORD = re.compile(rf"[^\W_]+|(?!{HYPHEN}|{CLOSING})[^\w\s{PUNCTUATION}{CONTROL}]")
"""A run of letters and digits, or one symbol; a combining mark counts as a symbol."""
LETTER = re.compile(r"[^\W_]")


@dataclass(frozen=True, slots=True)
class Example:
    """One document: its tokens, and for each whether it is learnt."""

    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    """(tokens,) whether a token carries loss; never the first, which nothing comes before."""
    where: str
    digest: str
    text: str
    """What a person reads: prompt and answer, or the passage."""
    prompt_tokens: int = 0
    """Tokens before the answer; 0 for plain text."""
    prompt: str = ""
    answer: str | None = None
    """The expected answer, where there is one to compare a generation with."""
    source: str = ""
    format: str = "text"
    cut: int = 0
    """Tokens that `too_long: truncate` took off."""
    parts: tuple[int, ...] = ()
    """Tokens of each text in it, where a task tells several apart: source and target, say."""
    labels: tuple[str, ...] = ()
    """Of the row, or of each token that carries loss; a number as text where one is asked for."""
    roles: tuple[str, ...] = ()
    """Who says each of the parts, where the row is a chat."""
    stops: int = 0
    """Answers that are learned up to their stop token."""
    cut_answers: int = 0
    """Answers that would have been, had `too_long: truncate` not taken their end off, or all."""
    typed: int = 0
    """Control tokens that the row spells out, and that were read as text."""
    columns: tuple[str, ...] = ()
    """Values of the columns that rows are held out by, as `Encoder.columns` names them."""

    @property
    def key(self) -> str:
        """Sha256 of the normalized text: equal if case, spaces and punctuation alone differ."""
        return hashlib.sha256(normalize(self.text).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def key_number(self) -> int:
        """The first 64 bits of `key`: enough to tell rows apart, and small enough for millions."""
        return int(self.key[:16], 16)

    @property
    def content(self) -> int:
        """64 bits that say the tokens, what is learnt of them, and the labels."""
        total = hashlib.sha256(self.tokens.tobytes())
        total.update(self.trained.tobytes())
        if self.labels:
            total.update(repr(self.labels).encode())
        return int.from_bytes(total.digest()[:8], "big")

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.tokens)

    @property
    def sections(self) -> tuple[tuple[str, int], ...]:
        """The role of each stretch of tokens, and how many they are."""
        if self.roles:
            return tuple(zip(self.roles, self.parts, strict=True))
        if self.prompt_tokens:
            return (("prompt", self.prompt_tokens), ("answer", self.length - self.prompt_tokens))
        return (("text", self.length),)

    @property
    def trained_tokens(self) -> int:
        """Tokens that carry loss."""
        return int(self.trained.sum())


def normalize(text: str) -> str:
    """The words and symbols in lower case, one space between.

    Of a text without a letter or digit, each sign once: a smiley said twice, or with a nose, is
    the same one. Where nothing is left the text stays as it is.
    """
    if LETTER.search(text):
        return " ".join(words_of(text)) or text
    return "".join(dict.fromkeys("".join(text.split()).replace("-", ""))) or text


def words_of(text: str) -> list[str]:
    """Words and symbols of a text in lower case, without the punctuation of prose."""
    return WORD.findall(text.lower())
