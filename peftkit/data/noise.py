"""The same text as another hand might have typed it: words lost, typos, case, gaps, emoji.

Nothing is replaced by a synonym, and nothing that carries a number is touched, so that what a text
says stays what it was as far as that can be promised without understanding it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    import numpy as np

    from peftkit.recipe.sections.augment import AugmentSection

KEPT = frozenset({"no", "not", "never", "none", "nor", "nothing", "without"})
"""Words that are never left out, because a text would say the opposite."""
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
BESIDE = {
    key: row[max(place - 1, 0) : place] + row[place + 1 : place + 2]
    for row in ROWS
    for place, key in enumerate(row)
}
"""The keys left and right of each letter."""
FACES = {
    ":)": "\U0001f642",
    ":(": "\U0001f641",
    ":D": "\U0001f600",
    ";)": "\U0001f609",
    ":P": "\U0001f61b",
    ":O": "\U0001f62e",
    ":'(": "\U0001f622",
    "<3": "\u2764\ufe0f",
}
"""Emoticons, and the emoji that says the same."""
TYPED = {face: emoticon for emoticon, face in FACES.items()}
HANDS = (
    "\U0001f44d\U0001f44e\U0001f44f\U0001f64c\U0001f44b\U0001f64f\U0001f4aa\U0001f44c\u270c"
    "\U0001f91e\U0001f91f\U0001f918\U0001f919\u261d\U0001f446\U0001f447\U0001f448\U0001f449"
    "\u270b\U0001f91a\U0001f590\U0001f596\u270a\U0001f44a\U0001f91d"
)
"""Emoji that come in skin tones."""
TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
SIGNS = "\u2764\u263a\u2639\u2600\u260e\u2708\u2709\u270f\u2714\u2716\u2665\u2b50\u26a0"
"""Signs that are an emoji or plain text, by the variation selector that may follow."""
SELECTOR = "\ufe0f"
EMOJI = re.compile(
    rf"(?<!\u200d)(?:[{HANDS}][{TONES}]?|[{SIGNS}]{SELECTOR}?|[{''.join(f[0] for f in TYPED)}])"
    rf"(?![{TONES}{SELECTOR}\u200d])"
    rf"|(?<!\S)(?:{'|'.join(map(re.escape, FACES))})(?!\S)"
)
"""Whatever has another way to be written, and is no piece of a joined emoji."""


def add_noise(
    text: str, section: AugmentSection, random: np.random.Generator, done: Counter[str]
) -> str:
    """The text with a share of its words, gaps and emoji changed; how many of each is counted."""

    def vary(match: re.Match[str]) -> str:
        if random.random() >= section.emoji:
            return match[0]
        done["emoji"] += 1
        return str(random.choice(ways_to_write(match[0])))

    pieces = re.split(r"(\s+)", EMOJI.sub(vary, text))
    words, gaps = pieces[::2], [*pieces[1::2], ""]
    words = _leave_out(words, gaps, section.drop, random, done)
    words = change_words(words, section, random, done)
    for at in range(len(gaps) - 1):
        letters = is_word(words[at]) and is_word(words[at + 1])
        if letters and gaps[at] == " " and random.random() < section.spacing:
            gaps[at] = str(random.choice(["", "  "]))
            done["spacing"] += 1
    return "".join(word + gap for word, gap in zip(words, gaps, strict=True))


def change_words(
    words: Sequence[str],
    section: AugmentSection,
    random: np.random.Generator,
    done: Counter[str],
) -> list[str]:
    """The words, of which some have a typo or another case; as many as there were."""
    found = []
    for word in words:
        changed = word
        for name, rate, change in (
            ("typos", section.typos, _mistype),
            ("case", section.case, _recase),
        ):
            if is_word(word) and random.random() < rate:
                other = change(changed, random)
                done[name] += other != changed
                changed = other
        found.append(changed)
    return found


def ways_to_write(piece: str) -> list[str]:
    """The other ways to write an emoji or an emoticon."""
    if piece in FACES:
        return [FACES[piece]]
    if piece in TYPED:
        return [TYPED[piece]]
    if piece[0] in HANDS:
        every = [piece[0], *(piece[0] + tone for tone in TONES)]
        return [way for way in every if way != piece]
    return [piece[0] if piece.endswith(SELECTOR) else piece + SELECTOR]


def is_word(piece: str) -> bool:
    """Whether it is letters alone, but for punctuation around them."""
    return re.fullmatch(r"[^\w\s]*[^\W\d_]+[^\w\s]*", piece) is not None


def _leave_out(
    words: list[str],
    gaps: list[str],
    rate: float,
    random: np.random.Generator,
    done: Counter[str],
) -> list[str]:
    """The words that stay; each that goes takes the gap behind it along. One always stays."""
    draws = random.random(len(words))
    bare = [word.strip("\"'.,;:!?()").lower() for word in words]
    gone = [
        at
        for at in range(len(words))
        if draws[at] < rate and is_word(words[at]) and bare[at] not in KEPT
    ]
    if gone and len(gone) == sum(map(bool, words)):
        gone.remove(max(gone, key=lambda at: float(draws[at])))
    for at in reversed(gone):
        if at == len(gaps) - 1 and at:  # the last word's own gap is empty: the one before it goes
            gaps[at - 1] = ""
        del words[at], gaps[at]
    done["drop"] += len(gone)
    return words


def _mistype(word: str, random: np.random.Generator) -> str:
    """Two letters change places, or one is missed or hit beside; short words stay."""
    letters = [at for at, letter in enumerate(word) if letter.isalpha()]
    if len(letters) < 3:
        return word
    at = int(random.choice(letters[:-1]))
    ways: list[Callable[[], str]] = [
        lambda: word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        lambda: word[:at] + word[at + 1 :],
        lambda: word[:at] + _hit_beside(word[at], random) + word[at + 1 :],
    ]
    return ways[int(random.integers(len(ways)))]()


def _hit_beside(letter: str, random: np.random.Generator) -> str:
    keys = BESIDE.get(letter.lower(), letter.lower())
    hit = keys[int(random.integers(len(keys)))]
    return hit.upper() if letter.isupper() else hit


def _recase(word: str, random: np.random.Generator) -> str:
    ways = [way for way in (word.lower(), word.upper(), word.capitalize()) if way != word]
    return str(random.choice(ways)) if ways else word
