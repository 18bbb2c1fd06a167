"""General text never holds a row that the run is judged by."""

import numpy as np
import pytest

from peftkit.data.example import Example
from peftkit.data.general import keep_apart
from peftkit.errors import InputError


def make(*texts: str) -> list[Example]:
    tokens = np.arange(5, dtype=np.int32)
    return [Example(tokens, tokens > 0, f"made:{n}", t, t) for n, t in enumerate(texts)]


def test_rows_that_are_judged_by_are_left_out() -> None:
    rows = make("the cat sat", "a dog ran", "it rained", "they slept")
    left = keep_apart("ewc", rows, [make("The cat sat!"), make("they slept", "others")])
    assert [each.text for each in left] == ["a dog ran", "it rained"]
    assert [each.text for each in keep_apart("ewc", rows, [])] == [each.text for each in rows]


def test_where_none_is_left_it_is_said() -> None:
    with pytest.raises(InputError, match="its source has no row besides"):
        keep_apart("kl", make("one row"), [make("one row")])
