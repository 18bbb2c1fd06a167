"""Noise stays within its rates, never touches numbers, and is the same for the same draw."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.noise import BESIDE, EMOJI, FACES, add_noise, change_words, is_word, ways_to_write
from peftkit.recipe.sections.augment import AugmentSection

WORDS = ["please", "not", "Open", "the", "garage", "door", "5", "at", "7pm", "now!", ":)", "ÄÖ"]
texts = some.lists(some.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
rates = some.floats(0, 1)
sections = some.builds(
    AugmentSection, drop=rates, typos=rates, case=rates, spacing=rates, emoji=rates
)
ONLY = dict.fromkeys(["drop", "typos", "case", "spacing", "emoji"], 0.0)


def only(**rate: float) -> AugmentSection:
    return AugmentSection(**{**ONLY, **rate})


def noisy(text: str, section: AugmentSection, seed: int = 0) -> tuple[str, Counter[str]]:
    done: Counter[str] = Counter()
    return add_noise(text, section, np.random.default_rng(seed), done), done


@given(text=some.text(max_size=60) | texts, section=sections, seed=some.integers(0, 999))
def test_the_same_draw_gives_the_same_text(text: str, section: AugmentSection, seed: int) -> None:
    assert noisy(text, section, seed) == noisy(text, section, seed)


@given(text=some.text(max_size=60))
def test_without_rates_a_text_stays_as_it_is(text: str) -> None:
    assert noisy(text, only()) == (text, Counter())


@given(text=texts, section=sections, seed=some.integers(0, 999))
def test_numbers_and_denials_stay(text: str, section: AugmentSection, seed: int) -> None:
    changed = noisy(text, section, seed)[0]
    assert changed.strip()
    for digit in "57":
        assert changed.count(digit) == text.count(digit)
    kept = noisy(text, only(drop=1.0), seed)[0].split()
    assert kept.count("not") == text.split().count("not")
    assert all(kept.count(word) == text.split().count(word) for word in ("5", "7pm"))


@given(text=texts, section=sections, seed=some.integers(0, 999))
def test_a_change_is_counted(text: str, section: AugmentSection, seed: int) -> None:
    changed, done = noisy(text, section, seed)
    assert (changed == text) or sum(done.values()) > 0


def test_each_rate_changes_its_own_kind() -> None:
    text = "Please open the garage door for me tonight :)"
    assert noisy(text, only(drop=1.0))[0] == ":)"
    assert noisy("alone", only(drop=1.0)) == ("alone", Counter())
    mistyped = noisy(text, only(typos=1.0))[0]
    assert mistyped != text
    assert len(mistyped.split()) == len(text.split())
    assert mistyped.endswith(":)")
    recased = noisy(text, only(case=1.0))[0]
    assert recased.lower() == text.lower()
    assert recased != text
    spaced = noisy(text, only(spacing=1.0))[0]
    assert spaced.replace(" ", "") == text.replace(" ", "")
    assert spaced != text
    assert noisy(text, only(emoji=1.0))[0] == text.replace(":)", FACES[":)"])


def test_half_of_the_words_go_where_half_are_to_go() -> None:
    text = " ".join(["word"] * 2000)
    done = noisy(text, only(drop=0.5))[1]
    assert done["drop"] == pytest.approx(1000, abs=100)


@pytest.mark.parametrize(
    ("text", "ways"),
    [
        ("\U0001f44d", 5),
        ("\U0001f44d\U0001f3fd", 5),
        ("\u2764\ufe0f", 1),
        ("\u2600", 1),
        (":D", 1),
        ("\U0001f642", 1),
    ],
)
def test_emoji_have_other_ways_to_be_written(text: str, ways: int) -> None:
    assert EMOJI.fullmatch(text)
    found = ways_to_write(text)
    assert len(set(found)) == ways
    assert text not in found
    assert all(EMOJI.fullmatch(way) for way in found)


@pytest.mark.parametrize(
    "text", ["\u2764\ufe0f\u200d\U0001f525", "a:)b", "x:D", "\U0001f468\u200d\U0001f469"]
)
def test_joined_emoji_and_letters_are_no_emoticons(text: str) -> None:
    assert noisy(text, only(emoji=1.0))[0] == text


@given(
    words=some.lists(some.sampled_from(WORDS), max_size=9),
    section=sections,
    seed=some.integers(0, 99),
)
def test_tagged_words_stay_as_many_as_they_were(
    words: list[str], section: AugmentSection, seed: int
) -> None:
    found = change_words(words, section, np.random.default_rng(seed), Counter())
    assert len(found) == len(words)
    assert all(len(word.split()) == 1 for word in found)
    assert [a for a, b in zip(words, found, strict=True) if not is_word(a) and a != b] == []


def test_keys_lie_beside_each_other() -> None:
    assert BESIDE["q"] == "w"
    assert BESIDE["s"] == "ad"
    assert len(BESIDE) == 26
