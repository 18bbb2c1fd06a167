"""What counts as the same text: prose's punctuation is ignored, a formula's signs are not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.example import Example, normalize

words = some.lists(some.text("abcäß9ж中", min_size=1, max_size=6), min_size=1, max_size=8)
gaps = some.lists(some.sampled_from([" ", ", ", "... ", "\n", " (", ") ", "! ", "  “"]), min_size=8)


def example(text: str) -> Example:
    return Example(np.arange(3, dtype=np.int32), np.array([False, True, True]), "f:1", "d", text)


@given(words=words, gaps=gaps)
def test_case_spaces_and_punctuation_do_not_count(words: list[str], gaps: list[str]) -> None:
    written = "".join(
        word.upper().replace("SS", "ß") + gap for word, gap in zip(words, gaps, strict=False)
    )
    plain = " ".join(words)
    assert normalize(written) == normalize(plain)
    assert example(written).key == example(plain).key


@given(text=some.text())
def test_normal_form_is_its_own(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("My top-up failed.", "my top up failed"),
        ("an e-mail", "an e mail"),
        ("for 18+ only", "for 18 only"),
        ("msgs@150p 18+only", "msgs@150p 18 only"),
        ("Call2OptOut/674&", "Call2OptOut/674"),
        ("age16+£1.50", "age16 £1.50"),
        ("\x93Harry Potter", "Harry Potter"),
        (":) ", ":-) :-)"),
        ("🙂", "🙂🙂 🙂"),
    ],
)
def test_texts_that_mean_the_same_have_one_key(one: str, other: str) -> None:
    """All but the last are of real rows that others count as duplicates."""
    assert example(one).key == example(other).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x-y", "x y"),
        ("a - b", "a b"),
        ("3-4", "3 4"),
        ("2+sqrt(x)", "2 sqrt(x)"),
        ("2+(3)", "2 (3)"),
        ("2+x", "2 x"),
        ("2+$x$", "2 $x$"),
        ("[NH4+]", "[NH4]"),
        ("C++", "C"),
        (":)", ":("),
        ("What is 3 + 4?", "What is 3 - 4?"),
        ("3 4", "34"),
        ("1.5", "15"),
        ("CC(C)C", "CCCC"),  # isobutane and butane
        ("C=CC", "CCC"),
        ("a < b", "a > b"),
        ("कि", "का"),  # they differ in a combining mark only
        ("🙂", "🙃"),
        ("!!!", "???"),
        ("", " "),
    ],
)
def test_texts_that_mean_something_else_stay_apart(one: str, other: str) -> None:
    assert example(one).key != example(other).key


def test_half_a_character_has_a_key() -> None:
    assert example("\ud800").key != example("\ud801").key


def test_lengths_are_counted() -> None:
    assert (example("a").length, example("a").trained_tokens) == (3, 2)
