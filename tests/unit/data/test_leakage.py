"""Held-out rows that were trained on are found: all of them, and no others."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from rows_alike import hashed, jaccard, train_and_held, where

from peftkit.data.hashed import Hashed
from peftkit.data.leakage import Settled, find_leaks, settle_leaks
from peftkit.data.near import NEAR
from peftkit.errors import InputError

LONG = "one two three four five six seven eight nine ten " * 9
Rows = tuple[list[list[str]], list[list[str]]]


def sides(rows: Rows) -> tuple[Hashed, Hashed]:
    return tuple(
        hashed(name, *map(" ".join, side))
        for name, side in zip(("train", "held"), rows, strict=True)
    )


def settle(policy: str, train: Hashed, **held: Hashed) -> Settled:
    apart = {name: held.pop(name) for name in ("remember", "benchmarks") if name in held}
    return settle_leaks(policy, train, held, apart)


@given(rows=train_and_held())
def test_leaks_are_those_that_comparing_every_pair_finds(rows: Rows) -> None:
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
    found = find_leaks(*sides(rows))
    assert [(p.kind, p.similarity, p.left, p.right) for p in found.pairs] == expected
    repeated = {
        place
        for place, other in enumerate(train)
        if any(jaccard(other, words) >= NEAR for words in held)
    }
    assert found.trained == repeated


@given(rows=train_and_held())
def test_leaking_goes_both_ways(rows: Rows) -> None:
    train, held = sides(rows)
    there, back = find_leaks(train, held), find_leaks(held, train)
    assert {pair.row for pair in there.pairs} == back.trained
    assert {pair.row for pair in back.pairs} == there.trained


@given(rows=train_and_held())
def test_what_is_left_after_removal_does_not_leak(rows: Rows) -> None:
    train, held = sides(rows)
    settled = settle("remove", train, validation=held)
    left = settled.held["validation"]
    assert find_leaks(train, left).pairs == ()
    assert settled.train is train
    assert settled.facts["exact"] + settled.facts["near"] == len(held) - len(left)
    clean = [
        place
        for place in range(len(held))
        if not find_leaks(train, held.pick(np.array([place]))).pairs
    ]
    assert where(left) == [held.examples[place].where for place in clean]


@given(rows=train_and_held())
def test_what_must_not_be_trained_on_leaves_the_training_rows(rows: Rows) -> None:
    train, apart = sides(rows)
    for name in ("remember", "benchmarks"):
        settled = settle("remove", train, **{name: apart})
        assert find_leaks(settled.train, apart).pairs == ()
        gone = settled.facts["left_out_of_training"]
        assert gone == len(train) - len(settled.train) == len(find_leaks(apart, train).pairs)


@pytest.mark.parametrize(
    "copy", ["HELLO world", "Hello, world!", " hello\n\tworld ", "“Hello” World"]
)
def test_case_and_punctuation_hide_no_copy(copy: str) -> None:
    (pair,) = find_leaks(hashed("train", "hello world"), hashed("held", copy)).pairs
    assert (pair.kind, pair.left, pair.text) == ("exact", "train:1", copy)


@pytest.mark.parametrize(
    ("trained", "held"),
    [("3 + 4 = 7", "3 - 4 = 7"), ("CC(=O)O", "CC(O)O"), ("🙂", "🙃"), ("!!!", "???"), ("कि", "का")],
)
def test_short_rows_that_differ_in_a_sign_are_no_leak(trained: str, held: str) -> None:
    assert find_leaks(hashed("train", trained), hashed("held", held)).pairs == ()


def test_nearly_the_same_is_counted_but_stops_nothing() -> None:
    train = hashed("train", " ".join(f"word{n}" for n in range(60)))
    held = hashed("held", " ".join(f"word{n}" for n in range(59)) + " end")
    settled = settle("error", train, validation=held)
    facts = settled.facts
    assert settled.held == {"validation": held}
    assert (facts["exact"], facts["near"], facts["policy"]) == (0, 1, "error")
    (shown,) = facts["pairs"]
    assert (shown["kind"], shown["set"]) == ("near", "validation")
    assert NEAR <= shown["similarity"] < 1
    assert (shown["left"], shown["right"]) == ("train:1", "held:1")


def test_a_copy_is_refused_and_both_places_are_named() -> None:
    train = hashed("train", "Hello, world", "something else")
    held = {"validation": hashed("val", "new"), "test": hashed("test", "hello world!", "new")}
    with pytest.raises(InputError, match="1 held-out row is also trained on") as refusal:
        settle("error", train, **held)
    assert refusal.value.exit_code == 65
    assert refusal.value.problems == ("test:1 repeats train:1: `hello world!`",)
    assert "data.leakage: remove" in str(refusal.value.hint)


def test_a_benchmark_is_refused_like_a_held_out_row() -> None:
    train, benchmark = hashed("train", "a b", "c d"), hashed("exam", "e f", "C D!")
    with pytest.raises(InputError) as refusal:
        settle("error", train, benchmarks=benchmark)
    assert refusal.value.problems == ("exam:2 repeats train:2: `C D!`",)


def test_training_on_what_must_be_remembered_is_told_and_stops_nothing() -> None:
    """It is how forgetting is kept small, and then the loss says less about it."""
    train, general = hashed("train", "a b", "c d"), hashed("general", "C D!")
    facts = settle("error", train, remember=general, validation=hashed("val", "e")).facts
    assert facts["sets"] == {
        "validation": {"exact": 0, "near": 0},
        "remember": {"exact": 1, "near": 0},
    }
    assert (facts["exact"], facts["near"]) == (0, 0)
    assert [(pair["set"], pair["left"]) for pair in facts["pairs"]] == [("remember", "train:2")]


def test_a_warning_keeps_every_row_and_says_which_leaked() -> None:
    train = hashed("train", "a b", "c d")
    held = {"validation": hashed("val", "A B", "e f"), "test": hashed("test", "C D", "a b")}
    settled = settle("warn", train, **held)
    assert settled.held == held
    assert settled.facts["exact"] == 3
    told = [pair["right"] for pair in settled.facts["pairs"]]
    assert told == ["val:1", "test:1", "test:2", "test:2"]  # the last stands in validation, too
    assert settled.leaked == {"validation": {"val1"}, "test": {"test1", "test2"}}


def test_off_looks_at_nothing() -> None:
    train, held = hashed("train", "a"), {"validation": hashed("val", "a")}
    settled = settle("off", train, **held)
    assert settled.held == held
    nothing = {"exact": None, "near": None}
    assert settled.facts == nothing | {
        "pairs": [],
        "policy": "off",
        "sets": {},
        "between": nothing,
    }


def test_long_texts_are_shown_shortened_and_few() -> None:
    train = hashed("train", *(f"{LONG} {number}" for number in range(60)))
    held = hashed("held", *(f"{LONG} {number}" for number in range(60)))
    facts = settle("warn", train, validation=held).facts
    assert facts["exact"] == 60
    assert len(facts["pairs"]) == 50
    assert all(len(pair["text"]) <= 200 for pair in facts["pairs"])


def leaked(train: list[str], held: list[str]) -> tuple[int, int]:
    found = find_leaks(hashed("train", *train), hashed("test", *held))
    return found.count("exact"), len(held)


def test_trec_shares_11_of_its_500_test_rows(material: Path) -> None:
    train, test = (
        [
            line.split(" ", 1)[1]
            for line in (material / f"sentconv/TREC.raw.{name}").read_text("latin-1").splitlines()
        ]
        for name in ("train", "test")
    )
    assert leaked(train, test) == (11, 500)


def test_banking77_shares_25_of_its_3080_test_rows(material: Path) -> None:
    train, test = (
        [
            row["text"]
            for row in csv.DictReader(io.StringIO((material / f"banking77/{name}.csv").read_text()))
        ]
        for name in ("train", "test")
    )
    assert leaked(train, test) == (25, 3080)


def test_gsm8k_shares_no_question(material: Path) -> None:
    train, test = (
        [
            json.loads(line)["question"]
            for line in (material / f"gsm8k/{name}.jsonl").read_text().splitlines()
        ]
        for name in ("train", "test")
    )
    assert leaked(train, test) == (0, 1319)


def test_test_rows_that_are_validation_rows_are_told() -> None:
    train = hashed("train", "alpha beta gamma")
    held = {
        "validation": hashed("validation", "one two three", LONG, "four five six"),
        "test": hashed("test", "seven eight", LONG + "end", "One, two three"),
    }
    for policy in ("error", "warn", "remove"):  # none of them was trained on
        told = settle(policy, train, **held)
        assert told.facts["between"] == {"exact": 1, "near": 1}
        assert told.facts["exact"] == told.facts["near"] == 0
        assert [len(told.held[name]) for name in ("validation", "test")] == [3, 3]
        assert {pair["set"] for pair in told.facts["pairs"]} == {"validation and test"}
    assert settle("off", train, **held).facts["between"] == {"exact": None, "near": None}
