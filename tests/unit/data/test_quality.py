"""Classes are counted in full, words by an even sample, and neither copies the rows."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.example import Example
from peftkit.data.quality import count_classes, describe_words, spread
from peftkit.data.views import View


def row(text: str, *labels: str) -> Example:
    tokens = np.arange(2, dtype=np.int32)
    return Example(tokens, np.array([False, True]), "a:1", text, text, labels=labels)


class Made(View):
    """Rows that are made when asked for, and count how often."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, Counter[int]()

    def __len__(self) -> int:
        return self.count

    def at(self, index: int) -> Example:
        self.asked[index] += 1
        return row(f"the text of {index} is here", "even" if index % 2 == 0 else "odd")


@given(some.integers(0, 400), some.integers(1, 50))
def test_a_sample_is_even_and_always_the_same(count: int, limit: int) -> None:
    rows = [row(str(number)) for number in range(count)]
    taken = [int(each.text) for each in spread(rows, limit)]
    assert len(taken) == min(count, limit)
    assert taken == sorted(set(taken)) == [int(each.text) for each in spread(rows, limit)]
    gaps = np.diff([*taken, count]) if taken else np.ones(1)
    assert gaps.max() - gaps.min() <= 1


def test_only_the_sample_of_a_huge_set_is_made() -> None:
    rows = Made(3_000_000)
    facts = describe_words(rows, 50)
    assert facts["rows"] == sum(rows.asked.values()) == 50
    assert facts["languages"] == {"en": 1.0}


def test_classes_are_counted_in_one_pass() -> None:
    rows = Made(1001)
    facts = count_classes({"train": rows}, ("odd", "even", "never"), "classification")
    assert set(rows.asked.values()) == {1}
    assert facts["train"]["counts"] == {"odd": 500, "even": 501, "never": 0}
    assert facts["train"]["lacking"] == ["never"]
    assert facts["train"]["majority"] == pytest.approx(501 / 1001)
    assert facts["ratio"] is None  # there is no ratio to nothing


def test_balance_is_that_of_the_training_rows() -> None:
    train = [row("a", "x")] * 30 + [row("b", "y")] * 10
    test = [row("c", "x")] * 3
    facts = count_classes({"train": train, "test": test}, ("x", "y"), "classification")
    assert facts["ratio"] == 3
    assert facts["test"]["lacking"] == ["y"]


def test_several_labels_a_row_and_tags_are_counted_each() -> None:
    several = [row("a", "x", "y"), row("b", "x"), row("c")]
    facts = count_classes({"train": several}, ("x", "y"), "multi-label")
    assert facts["train"]["counts"] == {"x": 2, "y": 1}
    tags = [row("a", "O", "O", "O", "B-place"), row("b", "B-name", "B-name", "O")]
    names = ("B-name", "B-place", "O")
    facts = count_classes({"train": tags}, names, "token-classification")
    assert (facts["ratio"], facts["of"]) == (2, "tags")  # `O` is no class of its own


def test_words_are_described_by_shares() -> None:
    rows = [
        row("The parcel is not here, and I do not know why 😂"),
        row("Das Paket ist nicht da, und ich weiß nicht warum"),
        row("Где моя посылка? Она ещё не пришла"),
        row("12345"),
    ]
    facts = describe_words(rows)
    assert facts["languages"] == {"de": 0.25, "en": 0.25, "ru": 0.25, "unknown": 0.25}
    assert facts["scripts"] == {"Latin": 0.5, "Cyrillic": 0.25, "none": 0.25}
    assert facts["emoji"] == 0.25
