"""Texts that have two labels are counted and listed, within the training rows and across."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as some
from rows_alike import PAIR, labeled

from peftkit.data.checks import check_rows
from peftkit.data.conflicts import find_conflicts
from peftkit.data.example import Example
from peftkit.data.hashed import hash_rows
from peftkit.recipe.sections.data import DataSection

rows = some.lists(some.tuples(some.sampled_from("abcde"), some.sampled_from("xyz")), max_size=12)


@given(train=rows, held=rows)
def test_conflicts_are_those_that_comparing_every_pair_finds(
    train: list[tuple[str, str]], held: list[tuple[str, str]]
) -> None:
    found = find_conflicts(labeled("train", *train), {"test": labeled("test", *held)})
    against = [any(text == t and label != x for t, x in train) for text, label in train]
    assert found["rows"] == sum(against)
    several = {text for (text, _), bad in zip(train, against, strict=True) if bad}
    assert found["texts"] == len(several)
    across = [
        (place, next((at for at, (t, x) in enumerate(train, 1) if t == text and x != label), 0))
        for place, (text, label) in enumerate(held, start=1)
    ]
    assert found["held_out"] == {"test": sum(at > 0 for _, at in across)}
    listed = [(p["left"], p["right"]) for p in found["pairs"] if p["set"] == "test"]
    assert listed == [(f"train:{at}", f"test:{place}") for place, at in across if at]
    within = [p for p in found["pairs"] if p["set"] == "train"]
    assert {p["text"] for p in within} == several
    assert all(p["labels"][0] != p["labels"][1] for p in found["pairs"])


def test_both_places_and_labels_are_named() -> None:
    train = labeled("a", ("So good!", "positive"), ("bad", "negative"), ("so GOOD", "negative"))
    found = find_conflicts(train, {"validation": labeled("v", ("BAD", "positive"))})
    assert found["labeled"] is True
    assert found["pairs"] == [
        {
            "set": "train",
            "left": "a:1",
            "right": "a:3",
            "labels": ["positive", "negative"],
            "text": "So good!",
        },
        {
            "set": "validation",
            "left": "a:2",
            "right": "v:1",
            "labels": ["negative", "positive"],
            "text": "bad",
        },
    ]


def answered(prompt: str, answer: str | None, kind: str = "completion") -> Example:
    return Example(
        *PAIR, "f:1", "d", f"{prompt}\n{answer}", prompt=prompt, answer=answer, format=kind
    )


def test_a_question_with_two_answers_is_one_and_a_text_without_is_none() -> None:
    pairs = [("2 + 2 = ", "4"), ("2 + 2 =", "5"), ("2 - 2 =", "0"), ("2 + 2", "4.")]
    found = find_conflicts(hash_rows([answered(*pair) for pair in pairs]), {})
    assert (found["rows"], found["texts"], found["labeled"]) == (2, 1, False)
    for others in (
        [answered("", "a"), answered(" ", "b")],
        [answered("a", None), answered("a", None)],
        [answered("a", "b", "similar"), answered("a", "c", "similar")],
    ):
        assert find_conflicts(hash_rows(others), {})["rows"] == 0


def test_labels_of_a_row_have_no_order() -> None:
    several = [
        Example(*PAIR, "f:1", "d", "text", prompt="text", answer=", ".join(names), labels=names)
        for names in (("a", "b"), ("b", "a"))
    ]
    assert find_conflicts(hash_rows(several), {})["rows"] == 0


def test_a_conflict_is_found_among_many_rows() -> None:
    many = [(f"text {number}", str(number % 7)) for number in range(3000)]
    draw = np.random.default_rng(0).permutation(3001)
    rows = [[*many, ("text 1234", "other")][at] for at in draw]
    found = find_conflicts(labeled("f", *rows), {})
    assert (found["rows"], found["texts"]) == (2, 1)
    assert found["pairs"][0]["text"] == "text 1234"


def test_rows_left_out_as_copies_are_compared_first() -> None:
    """Of two rows that differ in the label alone, the one that was kept may be the wrong one."""
    train = labeled("a", ("So good!", "positive"), ("bad", "negative"), ("so GOOD", "negative"))
    section = DataSection.model_validate({"train": "a", "validation": "v", "duplicates": "remove"})
    named = {"validation": labeled("v", ("fine", "positive")).examples}
    left, _, checks = check_rows(section, {}, train.examples, named, {})
    assert [example.where for example in left] == ["a:1", "a:2"]
    assert (checks.conflicts["rows"], checks.conflicts["pairs"][0]["right"]) == (2, "a:3")
