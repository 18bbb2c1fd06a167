"""What rows are held out by travels from the row to every example that is made of it."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.columns import keep_columns, refuse_missing
from peftkit.data.draft import Encoder, UnusableError
from peftkit.data.prepare import prepare_data
from peftkit.data.rows import Row
from peftkit.errors import InputError
from peftkit.recipe.sections.data import DataSection


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("Ann ", "Ann"),
        (7, "7"),
        (1.5, "1.5"),
        (["a", 1], '["a", 1]'),
        (dt.date(2026, 1, 31), "2026-01-31"),
        (dt.datetime(2026, 1, 31, 9, tzinfo=dt.UTC), "2026-01-31T09:00:00+00:00"),
    ],
)
def test_values_are_kept_as_text(value: Any, kept: str) -> None:
    assert keep_columns(Row({"by": value, "x": 1}, "f:1"), ("by",)) == (kept,)


@pytest.mark.parametrize(
    ("value", "why"), [(None, "is empty"), (" ", "is empty"), ("a\ud800", "half a character")]
)
def test_a_row_without_a_value_is_a_bad_one(value: Any, why: str) -> None:
    with pytest.raises(UnusableError, match=why):
        keep_columns(Row({"by": value}, "f:1"), ("by",))


def test_a_column_that_no_row_has_is_named_with_those_there_are() -> None:
    row = Row({"text": "a", "author": "b"}, "f.jsonl:1")
    why = "no column `auhtor` to hold rows out by; the row has `text`, `author`"
    with pytest.raises(InputError, match=f"f.jsonl:1: {why}") as refusal:
        refuse_missing(row, ("auhtor",))
    assert refusal.value.exit_code == 65
    with pytest.raises(UnusableError, match=why):
        keep_columns(row, ("auhtor",))
    assert keep_columns(row, ()) == ()
    refuse_missing(row, ("author", "text"))


def prepare(path: Path, rows: list[dict[str, Any]], tokenizer: Any, **section: Any) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settled = DataSection.model_validate({"train": str(path)} | section)
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), settled.max_length, "error")
    return prepare_data(settled, encoder)


def test_groups_times_and_pieces_of_a_long_text_are_held_out_whole(
    tmp_path: Path, tokenizer: Any
) -> None:
    rows = [
        {"text": f"letter {number:02} " * 7, "from": number % 10, "day": number}
        for number in range(60)
    ]
    splits = {
        "validation": {"fraction": 0.4, "by": "group:from"},
        "test": {"fraction": 0.2, "by": "time:day"},
    }
    data = prepare(tmp_path / "a.jsonl", rows, tokenizer, max_length=32, **splits)
    days, groups = (
        [{example.columns[at] for example in found.examples} for found in sets]
        for at, sets in (
            (0, (data.train, data.validation, data.test)),
            (1, (data.train, data.validation)),
        )
    )
    assert max(map(int, days[0] | days[1])) == min(map(int, days[2])) - 1 == 47
    assert not groups[0] & groups[1]
    assert len(groups[0] | groups[1]) == 10
    split = data.checks.split
    assert {name: (facts["by"], facts["fraction"]) for name, facts in split.items()} == {
        name: (each["by"], each["fraction"]) for name, each in splits.items()
    }
    for name, found in (("validation", data.validation), ("test", data.test)):
        assert split[name]["rows"] == [example.digest for example in found.examples]
        assert len(split[name]["rows"]) > 8


def test_leaving_copies_out_unties_groups(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"text": text, "from": number}
        for number in range(20)
        for text in ("thanks", f"letter {number}")
    ]
    how = {"validation": {"fraction": 0.4, "by": "group:from"}}
    with pytest.raises(InputError, match="copies of a text tie all together"):
        prepare(tmp_path / "a.jsonl", rows, tokenizer, **how)
    data = prepare(tmp_path / "a.jsonl", rows, tokenizer, duplicates="remove", **how)
    assert data.facts["duplicates"]["exact"] == 19
    assert data.facts["train"]["rows"] + data.facts["validation"]["rows"] == 21
    assert data.facts["validation"]["rows"] > 2


def test_a_row_that_lacks_the_column_follows_the_policy(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": f"row {number}", "from": number} for number in range(20)]
    rows.insert(7, {"text": "nobody's"})
    how = {"validation": {"fraction": 0.4, "by": "group:from"}}
    with pytest.raises(InputError, match="1 bad row in the training data") as refusal:
        prepare(tmp_path / "a.jsonl", rows, tokenizer, **how)
    assert refusal.value.problems == (
        "a.jsonl:8: no column `from` to hold rows out by; the row has `text`",
    )
    data = prepare(tmp_path / "a.jsonl", rows, tokenizer, bad_rows="skip", **how)
    assert data.facts["train"]["skipped"][0]["where"] == "a.jsonl:8"
    assert data.facts["train"]["rows"] + data.facts["validation"]["rows"] == 20


def test_sets_with_sources_of_their_own_need_no_such_column(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": "an exam"}\n')
    rows = [{"text": f"row {number}", "from": number} for number in range(20)]
    data = prepare(
        tmp_path / "a.jsonl",
        rows,
        tokenizer,
        validation={"fraction": 0.4, "by": "group:from"},
        test=str(tmp_path / "test.jsonl"),
    )
    assert data.facts["test"]["rows"] == 1


def test_benchmarks_and_what_must_be_remembered_are_kept_apart(
    tmp_path: Path, tokenizer: Any
) -> None:
    (tmp_path / "exam.jsonl").write_text('{"text": "Row 3!"}\n')
    rows = [{"text": f"row {number}"} for number in range(40)]
    with pytest.raises(InputError, match="1 held-out row is also trained on"):
        prepare(tmp_path / "a.jsonl", rows, tokenizer, benchmarks=str(tmp_path / "exam.jsonl"))
    removed = prepare(
        tmp_path / "a.jsonl",
        rows,
        tokenizer,
        leakage="remove",
        benchmarks=str(tmp_path / "exam.jsonl"),
    ).facts
    assert removed["leakage"]["left_out_of_training"] == 1
    assert removed["train"]["rows"] + removed["validation"]["rows"] == 39
