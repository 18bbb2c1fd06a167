"""Rows given from Python are files like any other, named by what is in them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.given import refuse_other_sets, write_sets
from peftkit.data.readers import read_file
from peftkit.data.rows import Intake
from peftkit.errors import InputError, RecipeError

values = some.recursive(
    some.none() | some.booleans() | some.integers(-(2**60), 2**60) | some.text(max_size=9),
    lambda inner: some.lists(inner, max_size=3),
    max_leaves=5,
)
rows = some.lists(some.dictionaries(some.text(max_size=5), values, max_size=3), max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For hypothesis, which may not ask for a folder a test."""
    return tmp_path_factory.mktemp("given")


@given(rows=rows)
def test_what_is_given_is_read(rows: list[dict[str, Any]], folder: Path) -> None:
    path = write_sets(folder, {"train": iter(rows)})["train"]
    found = list(read_file(path, Intake("error")))
    assert [row.values for row in found] == rows
    numbers = range(1, len(rows) + 1)
    assert [row.where for row in found] == [f"{path.name}:{number}" for number in numbers]


def test_the_name_tells_the_content(tmp_path: Path) -> None:
    one = write_sets(tmp_path / "a", {"train": [{"text": "a"}], "test": [{"text": "a"}]})
    again = write_sets(tmp_path / "a", {"train": ({"text": "a"} for _ in range(1))})
    other = write_sets(tmp_path / "a", {"train": [{"text": "b"}]})
    assert again["train"] == one["train"]
    assert one["train"].name.partition("-")[2] == one["test"].name.partition("-")[2]
    assert other["train"] != one["train"]
    assert len(list((tmp_path / "a").iterdir())) == 3  # and nothing unfinished


NO_ROWS: dict[str, tuple[Any, str]] = {
    "a text": ("words", "rows[`train`]: expected rows, got str"),
    "one row": ({"text": "a"}, "rows[`train`]: expected rows, got dict"),
    "a list of texts": (["a"], "rows[`train`], row 0: expected names with values, got `a`"),
    "a number for a name": ([{"a": 1}, {7: 1}], "rows[`train`], row 1: expected names"),
    "no number": ([{"a": float("nan")}], "row 0: out of range float values"),
    "an object": ([{"a": object()}], "row 0: object of type object is not json serializable"),
}


@pytest.mark.parametrize(("given", "why"), NO_ROWS.values(), ids=NO_ROWS)
def test_what_are_no_rows_is_refused(given: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        write_sets(tmp_path, {"train": given})
    assert why in refusal.value.message
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_while_rows_are_made_is_not_swallowed(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise LookupError("of the caller")

    with pytest.raises(LookupError, match="of the caller"):
        write_sets(tmp_path, {"train": broken()})
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_is_none_is_refused() -> None:
    refuse_other_sets(["train", "validation", "test"])
    with pytest.raises(RecipeError, match="`valid` is no set of rows; expected train, validation"):
        refuse_other_sets(["valid"])


def test_json_says_what_was_given(tmp_path: Path) -> None:
    path = write_sets(tmp_path, {"test": [{"ü": "\ud800"}]})["test"]
    assert json.loads(path.read_bytes()) == {"ü": "\ud800"}
