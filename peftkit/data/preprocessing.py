"""How well the tokenizer of the base fits the rows: what it does not know, cuts small or loses.

All is measured beside a reference: general text that is to be remembered, where the recipe names
some, because that is what the base is good at; else a few plain English sentences.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.data.languages import EMOJI
from peftkit.data.quality import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peftkit.data.example import Example

ROWS, CHARACTERS = 500, 1000
"""How many rows are looked at, and how much of each."""
NAMED = 12
"""Emoji that are named, the commonest first."""
ENGLISH = (
    "The morning was cold and bright, and nobody had yet come down to the harbor.",
    "She asked whether the letter had arrived, but the clerk only shook his head.",
    "When you open the box, you will find two cables, a charger and a short guide.",
    "Most of the town council agreed that the old bridge should be repaired before winter.",
    "Water boils at a lower temperature in the mountains because the air is thinner there.",
    "I would like to change my order, please, since one of the plates came broken.",
    "Once upon a time a little girl had a red ball, and she played with it every day.",
    "The company reported higher sales in its second quarter, although costs rose as well.",
    "He put the key under the mat, closed the door and walked slowly to the station.",
    "Nobody knows exactly how many birds cross the strait each year in spring and autumn.",
)
"""General English, as any base but one for other languages has read much of."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
PLAIN_BYTES = {"<0x0A>", "<0x09>", "<0x0D>", "<0x20>"}
"""Line ends and spaces, for which some tokenizers have nothing but the byte."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What a tokenizer makes of some texts."""

    tokens: int
    bytes: int
    words: int
    unknown: int
    """Tokens that stand for whatever the tokenizer does not know."""
    fallback: int
    """Tokens that are one byte of a character which the tokenizer does not know."""

    @property
    def facts(self) -> dict[str, float]:
        """The same as shares."""
        tokens = max(self.tokens, 1)
        return {
            "bytes_per_token": self.bytes / tokens,
            "tokens_per_word": self.tokens / max(self.words, 1),
            "unknown": self.unknown / tokens,
            "byte_tokens": self.fallback / tokens,
        }


def measure(tokenizer: Any, texts: Sequence[str]) -> Fit:
    """The tokenizer on some texts, without what it adds around each."""
    unknown = None if tokenizer.unk_token_id in _ends(tokenizer) else tokenizer.unk_token_id
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    counts = Counter(token for each in ids for token in each)
    pieces = dict(zip(counts, tokenizer.convert_ids_to_tokens(list(counts)), strict=True))
    return Fit(
        tokens=sum(counts.values()),
        bytes=sum(len(text.encode("utf-8", "replace")) for text in texts),
        words=sum(len(text.split()) for text in texts),
        unknown=0 if unknown is None else counts[unknown],
        fallback=sum(count for token, count in counts.items() if _is_byte(pieces[token])),
    )


def _ends(tokenizer: Any) -> tuple[Any, ...]:
    """Tokens that GPT-2 and its kin call unknown for want of another; they never stand for it."""
    return (tokenizer.eos_token_id, tokenizer.bos_token_id, None)


def _is_byte(piece: str) -> bool:
    return BYTE.fullmatch(piece) is not None and piece not in PLAIN_BYTES


def describe_fit(
    tokenizer: Any, examples: Sequence[Example], remembered: Sequence[str] = ()
) -> dict[str, Any]:
    """What `data.json` says of how the tokenizer reads the training rows, and the reference."""
    texts = [example.text[:CHARACTERS] for example in spread(examples, ROWS)]
    reference = [text[:CHARACTERS] for text in remembered] or list(ENGLISH)
    losses = {
        "capitals": _share(texts, _has_capitals) if _loses(tokenizer, "The CAT", "C") else 0.0,
        "accents": _share(texts, _has_accents) if _loses(tokenizer, "été", "é") else 0.0,
    }
    return {
        "rows": len(texts),
        **measure(tokenizer, texts).facts,
        "reference": {
            **measure(tokenizer, reference).facts,
            "of": "remember" if remembered else "english",
        },
        "lost": losses,
        **_describe_emoji(tokenizer, texts),
    }


def _loses(tokenizer: Any, text: str, character: str) -> bool:
    """Whether a character of the text is gone when its tokens are read again."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return character not in tokenizer.decode(ids)


def _share(texts: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, texts)) / max(len(texts), 1)


def _has_capitals(text: str) -> bool:
    """Whether case says something: a capital that does not open the text."""
    return any(character.isupper() for character in text.strip()[1:])


def _has_accents(text: str) -> bool:
    return not text.isascii() and any(
        unicodedata.category(character) == "Mn" for character in unicodedata.normalize("NFD", text)
    )


def _describe_emoji(tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    """The share of the emoji that the tokenizer has no token for, and the commonest of those."""
    counts = Counter(found for text in texts if not text.isascii() for found in EMOJI.findall(text))
    named = sorted(counts, key=lambda each: (-counts[each], each))
    lost = [each for each in named if not _knows(tokenizer, each)]
    total = max(sum(counts.values()), 1)
    return {
        "emoji_lost": sum(counts[each] for each in lost) / total,
        "emoji_lost_rows": _share(texts, lambda text: any(each in text for each in lost)),
        "emoji_named": lost[:NAMED],
    }


def _knows(tokenizer: Any, emoji: str) -> bool:
    ids = tokenizer(emoji, add_special_tokens=False, verbose=False)["input_ids"]
    return emoji in tokenizer.decode(ids)
