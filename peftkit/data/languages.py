"""Which script and language a text is in, and whether it holds emoji; unknown where not sure.

A language is told by its script where that has one language, else by the small words that every
sentence is made of: some 20 languages, microseconds a text, and nothing to install. Libraries know
more languages; those that are light (py3langid) unpickle their model, which nothing here does.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

LOOKED_AT = 1000
"""Characters of a text that are looked at."""
UNKNOWN = "unknown"
CLEAR = 1.3
"""How many times the words of the next best language the best one must have."""
EMOJI = re.compile(
    "[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u2614\u2615\u2639\u263a\u2728\u274c\u2753-\u2755\u2764\u2b50]"
)
BLOCKS: tuple[tuple[int, str], ...] = (
    (0x0000, "Latin"),
    (0x0370, "Greek"),
    (0x0400, "Cyrillic"),
    (0x0530, "Armenian"),
    (0x0590, "Hebrew"),
    (0x0600, "Arabic"),
    (0x0700, "other"),
    (0x0900, "Devanagari"),
    (0x0980, "Bengali"),
    (0x0A00, "Gurmukhi"),
    (0x0A80, "Gujarati"),
    (0x0B00, "other"),
    (0x0B80, "Tamil"),
    (0x0C00, "Telugu"),
    (0x0C80, "Kannada"),
    (0x0D00, "Malayalam"),
    (0x0D80, "Sinhala"),
    (0x0E00, "Thai"),
    (0x0E80, "Lao"),
    (0x0F00, "other"),
    (0x1000, "Burmese"),
    (0x10A0, "Georgian"),
    (0x1100, "Hangul"),
    (0x1200, "Ethiopic"),
    (0x13A0, "other"),
    (0x1780, "Khmer"),
    (0x1800, "other"),
    (0x1C80, "Cyrillic"),
    (0x1C90, "Georgian"),
    (0x1CC0, "other"),
    (0x1D00, "Latin"),
    (0x1F00, "Greek"),
    (0x2000, "Latin"),
    (0x2C00, "other"),
    (0x3040, "Kana"),
    (0x3100, "other"),
    (0x3130, "Hangul"),
    (0x3190, "other"),
    (0x3400, "Han"),
    (0xA000, "other"),
    (0xAC00, "Hangul"),
    (0xD7B0, "other"),
    (0xF900, "Han"),
    (0xFB00, "Latin"),
    (0xFB10, "other"),
    (0xFB1D, "Hebrew"),
    (0xFB50, "Arabic"),
    (0xFE00, "other"),
    (0xFE70, "Arabic"),
    (0xFEFF, "Latin"),
    (0xFF66, "Kana"),
    (0xFFA0, "other"),
    (0x20000, "Han"),
    (0x323B0, "other"),
)
"""Where the letters of each script begin; `other` lumps those of which no language is told."""
STARTS = [start for start, _ in BLOCKS]
ONE_LANGUAGE = {
    "Armenian": "hy",
    "Bengali": "bn",
    "Burmese": "my",
    "Georgian": "ka",
    "Greek": "el",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Han": "zh",
    "Hangul": "ko",
    "Hebrew": "he",
    "Kana": "ja",
    "Kannada": "kn",
    "Khmer": "km",
    "Lao": "lo",
    "Malayalam": "ml",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
}
"""Scripts that are nearly always of one language."""
LETTER = re.compile("[A-Za-z]")
WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|[\u0300-\u036f\u0610-\u065f\u0900-\u0963])+|[^\W\d_a-z]")
"""A word with its marks; not a single letter of ASCII, which formulas are full of."""


SMALL_WORDS = Path(__file__).with_name("function_words.txt")
"""One language a line: its code, a colon, the words that hold its sentences together."""


def script_of(text: str) -> str:
    """The script that most letters are of; empty for a text without any."""
    start = text[:LOOKED_AT]
    if start.isascii():
        return "Latin" if LETTER.search(start) else ""
    return _main_script(_letters_by_script(start))


def language_of(text: str) -> str:
    """The code of the language, such as `en`; `unknown` where it is not sure."""
    start = text[:LOOKED_AT]
    if not start.isascii():
        counts = _letters_by_script(start)
        script = _main_script(counts)
        if script == "Han" and counts["Kana"]:  # Japanese writes both, Chinese only the one
            return "ja"
        if script in ONE_LANGUAGE:
            return ONE_LANGUAGE[script]
    return _by_small_words(start)


def has_emoji(text: str) -> bool:
    """Whether there is an emoji in the text."""
    return not text.isascii() and EMOJI.search(text) is not None


@cache
def _languages_by_word() -> dict[str, tuple[str, ...]]:
    """The languages that each small word is of."""
    found: dict[str, tuple[str, ...]] = {}
    for line in SMALL_WORDS.read_text(encoding="utf-8").splitlines():
        language, _, words = line.partition(":")
        for word in words.split():
            found[word] = (*found.get(word, ()), language)
    return found


def _letters_by_script(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            counts[BLOCKS[bisect_right(STARTS, ord(character)) - 1][1]] += count
    return counts


def _main_script(counts: Counter[str]) -> str:
    return max(counts, key=lambda script: (counts[script], script), default="")


def _by_small_words(text: str) -> str:
    words = Counter(WORD.findall(text.lower()))
    languages_of = _languages_by_word()
    hits: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for word, count in words.items():
        for language in languages_of.get(word, ()):
            hits[language] += count
            kinds[language] += 1
    ranked = [*hits.most_common(2), ("", 0), ("", 0)]
    (best, count), (_, other) = ranked[:2]
    # One word may be a name or of another language: two different ones, and one in ten of all.
    enough = kinds[best] >= 2 and count * 10 >= words.total()
    return best if enough and count > CLEAR * other else UNKNOWN


def shares(values: Counter[str]) -> dict[str, Any]:
    """Each value's share of all, the largest first."""
    total = max(sum(values.values()), 1)
    ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return {name: count / total for name, count in ranked}
