"""Training rows that repeat one another are counted, and the first of each can be kept alone."""

from pathlib import Path

import pytest
from hypothesis import given
from rows_alike import hashed, jaccard, train_and_held, where

from peftkit.data import duplicates
from peftkit.data.duplicates import settle_duplicates
from peftkit.data.near import NEAR
from peftkit.errors import InputError

LONG = "the quick brown fox jumps over the lazy dog and runs far away from " * 3


@given(rows=train_and_held())
def test_duplicates_are_those_that_comparing_every_pair_finds(
    rows: tuple[list[list[str]], list[list[str]]],
) -> None:
    texts = [*rows[0], *rows[1]]
    distinct = [row for at, row in enumerate(texts) if row not in texts[:at]]
    near = [
        row
        for at, row in enumerate(distinct)
        if any(jaccard(row, other) >= NEAR for other in distinct[:at])
    ]
    same = hashed("f", *map(" ".join, texts))
    kept, facts = settle_duplicates("warn", same)
    assert kept is same
    assert facts["exact"] == len(texts) - len(distinct)
    assert facts["distinct"] == len(distinct)
    assert facts["near"] == len(near)
    left, removed = settle_duplicates("remove", same)
    assert [example.text.split() for example in left.examples] == [
        row for row in distinct if row not in near
    ]
    assert removed | {"policy": "warn"} == facts


@given(rows=train_and_held())
def test_nothing_is_repeated_once_repetitions_are_removed(
    rows: tuple[list[list[str]], list[list[str]]],
) -> None:
    left, _ = settle_duplicates("remove", hashed("f", *map(" ".join, [*rows[0], *rows[1]])))
    again, facts = settle_duplicates("remove", left)
    assert where(again) == where(left)
    assert (facts["exact"], facts["near"], facts["most"]) == (0, 0, [])


def test_the_most_repeated_rows_come_first() -> None:
    rows = ["b", "a", "A!", "c c", "b", "a", "alone", LONG, f"{LONG} end", "b"]
    _, facts = settle_duplicates("warn", hashed("f", *rows))
    assert (facts["exact"], facts["near"], facts["distinct"]) == (4, 1, 6)
    assert [(item["rows"], item["where"]) for item in facts["most"]] == [
        (3, "f:1"),
        (3, "f:2"),
        (2, "f:8"),
    ]
    assert facts["most"][0]["text"] == "b"


def test_a_row_repeats_what_its_like_repeats() -> None:
    words = [f"word{number}" for number in range(60)]
    rows = [list(words) for _ in range(3)]
    rows[1][20] = rows[2][20] = "changed"
    rows[2][40] = "changed as well"
    assert jaccard(rows[0], rows[2]) < NEAR < jaccard(rows[1], rows[2])
    kept, facts = settle_duplicates("remove", hashed("f", *map(" ".join, rows)))
    assert where(kept) == ["f:1"]
    assert [(item["rows"], item["where"]) for item in facts["most"]] == [(3, "f:1")]


def test_copies_are_refused_if_asked_for() -> None:
    with pytest.raises(InputError, match="2 training rows repeat an earlier one") as refusal:
        settle_duplicates("error", hashed("f", "a", "b", "A", "b!"))
    assert refusal.value.exit_code == 65
    assert refusal.value.problems == ("f:3 repeats f:1: `A`", "f:4 repeats f:2: `b!`")
    rows = hashed("f", LONG, f"{LONG} end")
    assert settle_duplicates("error", rows)[1]["near"] == 1


def test_off_looks_at_nothing() -> None:
    rows = hashed("f", "a", "a")
    kept, facts = settle_duplicates("off", rows)
    assert kept is rows
    assert (facts["exact"], facts["near"]) == (None, None)


def test_beyond_a_size_copies_are_found_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST", 2)
    rows = hashed("f", LONG, f"{LONG} end", "a", "A")
    left, facts = settle_duplicates("remove", rows)
    assert (facts["exact"], facts["near"], facts["distinct"]) == (1, None, 3)
    assert where(left) == ["f:1", "f:2", "f:3"]


def test_5130_of_the_5574_messages_are_distinct(material: Path) -> None:
    lines = (material / "sms-spam/sms.tsv").read_text("utf-8").splitlines()
    rows = hashed("sms", *(line.split("\t", 1)[1] for line in lines))
    _, facts = settle_duplicates("warn", rows)
    assert (len(rows), facts["distinct"], facts["exact"]) == (5574, 5130, 444)
