"""Samples show mistakes first, and never more or fewer rows than there are to show."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from peftkit.pipeline.samples import choose_samples


def test_half_are_mistakes_where_there_are_enough() -> None:
    right = np.array([1, 1, 0, 1, 0, 0, 0, 1, 1, 1], float)
    assert choose_samples(right, 4) == [0, 1, 2, 4]


@given(right=some.lists(some.booleans(), min_size=1, max_size=30), count=some.integers(1, 12))
def test_as_many_as_asked_for_and_each_once(right: list[bool], count: int) -> None:
    chosen = choose_samples(np.array(right, float), count)
    assert len(set(chosen)) == len(chosen) == min(count, len(right))
    assert chosen == sorted(chosen)
    wrong = sum(not right[row] for row in chosen)
    assert wrong >= min(count // 2, right.count(False))
