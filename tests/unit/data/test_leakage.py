"""Held-out rows that were trained on are found: all of them, and no others."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.example import Example
from peftkit.data.leakage import find_leaks, settle_leaks
from peftkit.errors import InputError

PAIR = (np.zeros(2, np.int32), np.array([False, True]))
SHINGLE, NEAR = 5, 0.8
LONG = "one two three four five six seven eight nine ten " * 9


def examples(name: str, *texts: str) -> list[Example]:
    return [
        Example(*PAIR, f"{name}:{number}", f"{name}{number}", text)
        for number, text in enumerate(texts, start=1)
    ]


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    starts = range(max(len(words) - SHINGLE, 0) + 1)
    return {tuple(words[start : start + SHINGLE]) for start in starts}


def jaccard(one: list[str], other: list[str]) -> float:
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


@some.composite
def train_and_held(draw: some.DrawFn) -> tuple[list[list[str]], list[list[str]]]:
    """Word lists; the held-out ones are training ones with a few words changed, or new."""
    words = some.sampled_from("abcdefgh")
    train = draw(some.lists(some.lists(words, min_size=1, max_size=40), min_size=1, max_size=6))
    train += draw(some.lists(some.sampled_from(train), max_size=3))
    held = []
    for _ in range(draw(some.integers(1, 5))):
        row = list(draw(some.sampled_from(train)))
        for _ in range(draw(some.integers(0, 2))):
            row[draw(some.sampled_from([0, -1, draw(some.integers(0, len(row) - 1))]))] = draw(
                words
            )
        held.append(row + draw(some.lists(words, max_size=3)))
    return train, held


@given(rows=train_and_held())
def test_leaks_are_those_that_comparing_every_pair_finds(
    rows: tuple[list[list[str]], list[list[str]]],
) -> None:
    train, held = rows
    expected = []
    for number, words in enumerate(held, start=1):
        same = [place for place, other in enumerate(train, start=1) if other == words]
        similar = [(jaccard(other, words), -place) for place, other in enumerate(train, start=1)]
        best, place = max(similar)
        if same:
            expected.append(("exact", 1.0, f"train:{same[0]}", f"held:{number}"))
        elif best >= NEAR:
            expected.append(("near", round(best, 4), f"train:{-place}", f"held:{number}"))
    found = find_leaks(
        examples("train", *map(" ".join, train)), examples("held", *map(" ".join, held))
    )
    assert [(pair.kind, pair.similarity, pair.left, pair.right) for pair in found] == expected


@given(rows=train_and_held())
def test_what_is_left_after_removal_does_not_leak(
    rows: tuple[list[list[str]], list[list[str]]],
) -> None:
    train = examples("train", *map(" ".join, rows[0]))
    held = examples("held", *map(" ".join, rows[1]))
    kept, facts = settle_leaks("remove", train, {"validation": held})
    assert find_leaks(train, kept["validation"]) == []
    assert facts["exact"] + facts["near"] == len(held) - len(kept["validation"])
    clean = [row for row in held if not find_leaks(train, [row])]
    assert [row.where for row in kept["validation"]] == [row.where for row in clean]


@pytest.mark.parametrize(
    "copy", ["HELLO world", "Hello, world!", " hello\n\tworld ", "“Hello” World"]
)
def test_case_and_punctuation_hide_no_copy(copy: str) -> None:
    (pair,) = find_leaks(examples("train", "hello world"), examples("held", copy))
    assert (pair.kind, pair.left, pair.text) == ("exact", "train:1", copy)


@pytest.mark.parametrize(
    ("trained", "held"),
    [("3 + 4 = 7", "3 - 4 = 7"), ("CC(=O)O", "CC(O)O"), ("🙂", "🙃"), ("!!!", "???"), ("कि", "का")],
)
def test_short_rows_that_differ_in_a_sign_are_no_leak(trained: str, held: str) -> None:
    assert find_leaks(examples("train", trained), examples("held", held)) == []


def test_nearly_the_same_is_counted_but_stops_nothing() -> None:
    train = examples("train", " ".join(f"word{n}" for n in range(60)))
    held = examples("held", " ".join(f"word{n}" for n in range(59)) + " end")
    kept, facts = settle_leaks("error", train, {"validation": held})
    assert kept == {"validation": held}
    assert (facts["exact"], facts["near"], facts["policy"]) == (0, 1, "error")
    (shown,) = facts["pairs"]
    assert shown["kind"] == "near"
    assert NEAR <= shown["similarity"] < 1
    assert (shown["left"], shown["right"]) == ("train:1", "held:1")


def test_a_copy_is_refused_and_both_places_are_named() -> None:
    train = examples("train", "Hello, world", "something else")
    held = {"validation": examples("val", "new"), "test": examples("test", "hello world!", "new")}
    with pytest.raises(InputError, match="1 held-out row is also trained on") as refusal:
        settle_leaks("error", train, held)
    assert refusal.value.exit_code == 65
    assert refusal.value.problems == ("test:1 repeats train:1: `hello world!`",)
    assert "data.leakage: remove" in str(refusal.value.hint)


def test_a_warning_keeps_every_row() -> None:
    train = examples("train", "a b", "c d")
    held = {"validation": examples("val", "A B", "e f"), "test": examples("test", "C D", "a b")}
    kept, facts = settle_leaks("warn", train, held)
    assert kept == held
    assert facts["exact"] == 3
    assert [pair["right"] for pair in facts["pairs"]] == ["val:1", "test:1", "test:2"]


def test_off_looks_at_nothing() -> None:
    train, held = examples("train", "a"), {"validation": examples("val", "a")}
    kept, facts = settle_leaks("off", train, held)
    assert kept == held
    assert facts == {"exact": None, "near": None, "pairs": [], "policy": "off"}


def test_long_texts_are_shown_shortened_and_few() -> None:
    facts: dict[str, Any]
    train = examples("train", *(f"{LONG} {number}" for number in range(60)))
    held = examples("held", *(f"{LONG} {number}" for number in range(60)))
    _, facts = settle_leaks("warn", train, {"validation": held})
    assert facts["exact"] == 60
    assert len(facts["pairs"]) == 50
    assert all(len(pair["text"]) <= 200 for pair in facts["pairs"])
