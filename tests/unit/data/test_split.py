"""Held-out rows are chosen by what they say, so neither copies nor added rows disturb them."""

import tracemalloc
from collections import Counter
from hashlib import sha256
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from rows_alike import PAIR

from peftkit.data.example import Example
from peftkit.data.hashed import Hashed, hash_rows
from peftkit.data.split import columns_of, hold_out, mark_held
from peftkit.errors import InputError
from peftkit.recipe.sections.split import SplitSection

texts = some.lists(some.text("abcdefgh ", min_size=1, max_size=8), max_size=30)
fractions = some.floats(0.01, 0.99)
marked = some.lists(
    some.tuples(some.text("abcdefgh", min_size=1, max_size=3), some.integers(0, 9)), max_size=40
)
"""Texts, some of them copies, each with a group, class or time."""


def rows_of(pairs: list[tuple[str, object]], *, labeled: bool = False) -> Hashed:
    return hash_rows(
        [
            Example(
                *PAIR,
                f"f:{number}",
                f"d{number}",
                text,
                prompt=text,
                answer=str(mark),
                labels=(str(mark),) if labeled else (),
                columns=(str(mark),),
            )
            for number, (text, mark) in enumerate(pairs, start=1)
        ]
    )


def plain(texts: list[str]) -> Hashed:
    return rows_of([(text, 0) for text in texts])


def split(rows: Hashed, fraction: float, by: str = "random") -> tuple[list[Example], list[Example]]:
    """What is left, and what is held out."""
    section = SplitSection(fraction=fraction, by=by)
    marks = mark_held(rows, section, columns_of({"validation": section}))
    kept, held = (rows.pick(np.flatnonzero(side)) for side in (~marks, marks))
    return list(kept.examples), list(held.examples)


def held_keys(rows: Hashed, fraction: float, by: str = "random") -> set[str]:
    return {example.key for example in split(rows, fraction, by)[1]}


@given(pairs=marked, fraction=fractions, by=some.sampled_from(["random", "group:g", "time:t"]))
def test_each_row_is_on_one_side_in_its_old_order(
    pairs: list[tuple[str, int]], fraction: float, by: str
) -> None:
    rows = rows_of(pairs)
    kept, held = split(rows, fraction, by)
    assert sorted(kept + held, key=lambda row: int(row.where[2:])) == list(rows.examples)
    for side in (kept, held):
        assert side == sorted(side, key=lambda row: int(row.where[2:]))


@given(
    pairs=marked,
    fraction=fractions,
    by=some.sampled_from(["random", "stratified", "group:g", "time:t"]),
)
def test_copies_are_on_the_same_side(
    pairs: list[tuple[str, int]], fraction: float, by: str
) -> None:
    copies = [(f"{text.upper()}!", mark + 1) for text, mark in pairs]
    kept, held = split(rows_of([*pairs, *copies]), fraction, by)
    assert not {row.key for row in kept} & {row.key for row in held}


@given(texts=texts, fraction=fractions)
def test_two_different_rows_are_enough_for_both_sides(texts: list[str], fraction: float) -> None:
    different = len({row.key for row in plain(texts).examples})
    kept, held = split(plain(texts), fraction)
    if different > 1:
        assert kept
        assert held
    else:
        assert (len(kept), held) == (len(texts), [])


@given(texts=texts, added=texts, fraction=some.floats(0.2, 0.8))
def test_added_rows_move_none_that_was_there(
    texts: list[str], added: list[str], fraction: float
) -> None:
    rows = plain([*texts, *(f"row {number}" for number in range(40))])
    before = held_keys(rows, fraction)
    after = held_keys(plain([*added, *(row.text for row in rows.examples)]), fraction)
    assert after & {row.key for row in rows.examples} == before


@given(texts=texts, added=texts, fraction=fractions)
def test_in_a_tiny_set_they_move_at_most_one(
    texts: list[str], added: list[str], fraction: float
) -> None:
    """One row had to be put on a side where the fraction alone would have left none."""
    before = held_keys(plain(texts), fraction)
    after = held_keys(plain([*texts, *added]), fraction)
    moved = (after & {row.key for row in plain(texts).examples}) ^ before
    assert len(moved) <= 1


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("by", ["random", "stratified", "group:g"])
def test_the_share_is_the_one_asked_for(by: str, fraction: float) -> None:
    rows = rows_of([(f"row {number}", number if by[0] == "g" else 0) for number in range(4000)])
    held = len(split(rows, fraction, by)[1])
    assert abs(held - 4000 * fraction) < 4 * sqrt(4000 * fraction * (1 - fraction))


def test_a_larger_fraction_holds_out_the_same_rows_and_more() -> None:
    rows = plain([f"row {number}" for number in range(200)])
    sizes = Counter()
    smaller: set[str] = set()
    for fraction in (0.1, 0.2, 0.4, 0.8):
        held = held_keys(rows, fraction)
        assert smaller < held
        smaller = held
        sizes[len(held)] += 1
    assert len(sizes) == 4


def test_two_splits_hold_out_different_rows() -> None:
    rows = plain([f"row {number}" for number in range(2000)])
    named = {name: SplitSection(fraction=0.2) for name in ("test", "validation")}
    kept, held = hold_out(rows, named)
    sizes = [len(kept), len(held["test"]), len(held["validation"])]
    assert sum(sizes) == 2000
    assert [abs(size - wanted) < 80 for size, wanted in zip(sizes, (1280, 400, 320), strict=True)]
    assert not {*held["test"].keys.tolist()} & {*held["validation"].keys.tolist()}


@given(pairs=marked, fraction=fractions)
def test_no_group_is_on_both_sides(pairs: list[tuple[str, int]], fraction: float) -> None:
    kept, held = split(rows_of(pairs), fraction, "group:g")
    assert not {row.columns for row in kept} & {row.columns for row in held}


@given(pairs=marked, added=marked, fraction=some.floats(0.2, 0.8))
def test_added_rows_move_no_group_unless_a_copy_ties_it_to_another(
    pairs: list[tuple[str, int]], added: list[tuple[str, int]], fraction: float
) -> None:
    pairs = [*pairs, *((f"row {number}", 100 + number) for number in range(40))]
    new = [(f"new {number} {text}", mark) for number, (text, mark) in enumerate(added)]
    before = held_keys(rows_of(pairs), fraction, "group:g")
    after = held_keys(rows_of([*new, *pairs]), fraction, "group:g")
    assert after & {row.key for row in rows_of(pairs).examples} == before


def test_groups_that_share_a_text_go_together() -> None:
    alone = [(f"{group} says {number}", group) for group in range(60) for number in range(3)]
    tied = [("everyone says this", group) for group in range(30)]
    kept, held = split(rows_of(alone + tied), 0.3, "group:g")
    sides = {group: "kept" for row in kept for group in row.columns}
    sides |= {group: "held" for row in held for group in row.columns}
    assert len(sides) == 60
    assert len({sides[str(group)] for group in range(30)}) == 1
    assert len({sides[str(group)] for group in range(30, 60)}) == 2


def test_groups_that_copies_tie_all_together_are_refused() -> None:
    rows = rows_of([("thanks", group) for group in range(9)])
    with pytest.raises(InputError, match="copies of a text tie all together") as refusal:
        hold_out(rows, {"validation": SplitSection(by="group:author")})
    assert "data.duplicates: remove" in str(refusal.value.hint)


@given(pairs=marked, fraction=fractions)
def test_what_is_held_out_by_time_is_later_than_all_else(
    pairs: list[tuple[str, int]], fraction: float
) -> None:
    rows = rows_of(pairs)
    kept, held = split(rows, fraction, "time:t")
    first: dict[str, float] = {}
    for row in rows.examples:
        first[row.key] = min(first.get(row.key, np.inf), float(row.columns[0]))
    if held:
        line = min(first[row.key] for row in held)
        assert all(first[row.key] < line for row in kept)
        last = [row for row in rows.examples if first[row.key] == max(first.values())]
        assert len(held) <= max(fraction * len(pairs), len(last))
    assert bool(held) == (len(set(first.values())) > 1)


@pytest.mark.parametrize(
    ("times", "latest"),
    [
        (["9", "10", "2"], "10"),
        (["2026-01-31", "2025-12-01", "2026-01-31T10:00:00"], "2026-01-31T10:00:00"),
        (["2026-01-31T10:00:00+02:00", "2026-01-31T09:00:00Z"], "2026-01-31T09:00:00Z"),
        (["2026-01-31T10:00", "2026-01-31T11:00+02:00"], "2026-01-31T10:00"),
        (["-1", "-0.5", "-1e9"], "-0.5"),
    ],
)
def test_numbers_and_dates_are_ordered_as_such(times: list[str], latest: str) -> None:
    rows = rows_of([(f"row {number}", time) for number, time in enumerate(times)])
    assert [row.columns[0] for row in split(rows, 0.01, "time:t")[1]] == [latest]


@pytest.mark.parametrize(
    ("times", "said", "listed"),
    [
        (["1", "yesterday", "nan"], "2 rows have neither", ("f:2: `yesterday`", "f:3: `nan`")),
        (["1", "2026-01-31"], "got both", ("f:1: `1`", "f:2: `2026-01-31`")),
    ],
)
def test_what_cannot_be_ordered_is_refused(
    times: list[str], said: str, listed: tuple[str, ...]
) -> None:
    rows = rows_of([(f"row {number}", time) for number, time in enumerate(times)])
    with pytest.raises(InputError, match=said) as refusal:
        hold_out(rows, {"validation": SplitSection(by="time:date")})
    assert refusal.value.problems == listed


def by_class(rows: Hashed) -> dict[str, set[str]]:
    """The texts of each class; one with several labels is of that with the least hash."""
    first: dict[str, str] = {}
    for row in rows.examples:
        labels = {first.get(row.key, row.labels[0]), row.labels[0]}
        first[row.key] = min(labels, key=lambda label: sha256(label.encode()).digest())
    return {label: {key for key in first if first[key] == label} for label in first.values()}


@given(pairs=marked, fraction=fractions)
def test_each_class_gives_its_share(pairs: list[tuple[str, int]], fraction: float) -> None:
    rows = rows_of(pairs, labeled=True)
    held = held_keys(rows, fraction, "stratified")
    for keys in by_class(rows).values():
        wanted = min(max(round(fraction * len(keys)), 1), len(keys) - 1)
        assert len(keys & held) == wanted


@given(pairs=marked, added=marked, fraction=fractions)
def test_a_class_moves_no_more_rows_than_it_gets_and_no_other_class_moves(
    pairs: list[tuple[str, int]], added: list[tuple[str, int]], fraction: float
) -> None:
    new = [(f"new {text}", mark) for text, mark in added]
    old_rows, all_rows = rows_of(pairs, labeled=True), rows_of([*pairs, *new], labeled=True)
    before = held_keys(old_rows, fraction, "stratified")
    after = held_keys(all_rows, fraction, "stratified")
    for label, keys in by_class(old_rows).items():
        came, went = (after - before) & keys, (before - after) & keys
        grown = len(by_class(all_rows)[label]) - len(keys)
        assert len(came) + len(went) <= grown
        assert not (came and went)


def test_rows_without_labels_have_no_classes() -> None:
    rows = hash_rows([Example(*PAIR, f"f:{n}", str(n), f"text {n}") for n in range(9)])
    with pytest.raises(InputError, match="without labels or answers"):
        hold_out(rows, {"validation": SplitSection(by="stratified")})


def test_one_long_answer_does_not_take_its_room_for_every_row() -> None:
    rows = rows_of([(f"text {number}", number % 3) for number in range(500)] + [("x", "y" * 20000)])
    tracemalloc.start()
    held = held_keys(rows, 0.2, "stratified")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(held) == 99
    assert peak < 2**20


def test_a_column_is_kept_once_for_all_splits_that_ask_for_it() -> None:
    splits = {
        "test": SplitSection(by="time:date"),
        "validation": SplitSection(by="group:author: name"),
        "more": SplitSection(by="group:date"),
        "random": SplitSection(),
    }
    assert columns_of(splits) == ("date", "author: name")
