"""Every check of the rows has its table, and a folder without it still makes a page."""

import json
from pathlib import Path
from typing import Any

import pytest
import run_folders as folders
from hypothesis import given
from hypothesis import strategies as some

from peftkit.report import data_section
from peftkit.report.page import build_page
from peftkit.report.reading import read_run
from peftkit.report.tables import LISTED, Table
from peftkit.report.text import build_text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.write_run(tmp_path_factory.mktemp("runs") / "intents")


def named(tables: list[Table]) -> dict[str, Table]:
    assert len({table.title for table in tables}) == len(tables)
    return {table.title: table for table in tables}


def test_what_was_found_is_in_short_tables(run: Path) -> None:
    found = named(data_section.summary(read_run(run)))
    assert {
        *("Splits", "Sources", "Classes", "Languages", "How the tokenizer reads them"),
        *("Filters", "Checks"),
    } == set(found)
    assert found["Classes"].rows[0] == ("billing", "640", "32")
    assert found["Languages"].rows[1] == ("German", "6 %", "6 %", "6 %")
    assert found["Languages"].rows[-1] == ("With an emoji", "10 %", "10 %", "10 %")
    assert ("Unknown tokens", "1.2 %", "0 %") in found["How the tokenizer reads them"].rows
    assert ("shortest", "3", "3", "1,600", "would be left out") in found["Filters"].rows
    assert ("Labels a probe is sure are wrong", "31") in found["Checks"].rows


def test_rows_are_listed_one_by_one(run: Path) -> None:
    found = named(data_section.row_by_row(read_run(run)))
    suspected = found["Labels that are probably wrong"]
    assert len(suspected.rows) == LISTED
    assert suspected.note.startswith(f"{LISTED} of 30;")
    assert suspected.rows[0][:3] == ("data/train.jsonl:7", "billing", "returns")
    assert found["The same with two labels"].rows[0][2] == "delivery / returns"
    assert found["Most repeated training rows"].rows == (
        ("data/train.jsonl:5", "3", "Where is my parcel?"),
    )
    assert found["Rows that filters are against"].rows[0][1:] == ("shortest", "1", "kept")


def test_tokens_are_told_by_who_says_them(tmp_path: Path) -> None:
    run, data = folders.write_run(tmp_path / "chats"), folders.data()
    told = {"stops_trained": 40, "cut_tokens": 0, "cut_answers": 0, "control_as_text": 2}
    data["train"] |= told | {"trained_by_role": {"assistant": 1234, "tool": 5}}
    data["test"] |= dict.fromkeys(told, 0) | {"trained_by_role": {"assistant": 77}}
    folders.write(run / "data.json", data)
    tokens = named(data_section.summary(read_run(run)))["Tokens"]
    assert tokens.columns == ("", "train", "test")
    assert tokens.rows == (
        ("Learned, said by assistant", "1,234", "77"),
        ("Learned, said by tool", "5", "0"),
        ("Answers learned up to their stop", "40", "0"),
        ("Control tokens read as text", "2", "0"),
    )
    assert "Control tokens read as text" in build_page(run)
    assert "| Learned, said by assistant | 1,234 | 77 |" in build_text(run)


def test_classes_are_bars(run: Path) -> None:
    bars = data_section.class_bars(read_run(run))
    assert bars is not None
    assert [bar.name for bar in bars.bars][:2] == ["billing", "delivery"]
    assert bars.bars[0].value == "40 %"
    assert "Training rows of each class" in build_page(run)


def test_an_older_folder_has_the_tables_it_had(tmp_path: Path) -> None:
    run = folders.write_run(tmp_path / "old")
    data = {key: value for key, value in folders.data().items() if key not in folders.checks()}
    folders.write(run / "data.json", data)
    facts = read_run(run)
    assert [split.name for split in facts.splits] == ["train", "validation", "test"]
    assert set(named(data_section.summary(facts))) == {"Splits", "Sources"}
    assert data_section.class_bars(facts) is None
    assert "## Data" in build_text(run)
    assert "Training rows of each class" not in build_page(run)


def test_checks_are_no_splits(run: Path) -> None:
    assert [split.name for split in read_run(run).splits] == ["train", "validation", "test"]


def test_words_of_rows_stay_words(tmp_path: Path) -> None:
    run = folders.write_run(tmp_path / "hostile")
    hostile = "<script>alert(1)</script>|"
    data = folders.data()
    data["label_noise"]["listed"][0]["given"] = hostile
    data["balance"]["train"]["counts"][hostile] = 3
    data["duplicates"]["most"][0]["text"] = hostile
    folders.write(run / "data.json", data)
    assert "<script>alert" not in build_page(run)
    assert "<script>alert" not in build_text(run)


json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner),
    max_leaves=6,
)


@given(some.dictionaries(some.sampled_from(sorted(folders.checks())), json_values, max_size=4))
def test_no_content_breaks_a_table(changed: dict[str, Any]) -> None:
    data = json.loads(json.dumps(folders.checks() | changed))
    for make in (*data_section.SHORT, *data_section.BY_ROW):
        table = make(data)
        assert all(isinstance(cell, str) for row in table.rows for cell in row)
        assert len({len(row) for row in table.rows}) <= 1


@pytest.mark.parametrize(
    ("rows", "unchanged", "shown"), [(0, 0, False), (3, 0, True), (0, 2, True)]
)
def test_copies_are_told_of_where_some_were_asked_for(
    *, rows: int, unchanged: int, shown: bool, tmp_path: Path
) -> None:
    run = folders.write_run(tmp_path / "run")
    data = json.loads((run / "data.json").read_text())
    data["train"]["augmented"] = {
        "rows": rows,
        "changes": {"typos": rows} if rows else {},
        "unchanged": unchanged,
        "left_out": 0,
    }
    (run / "data.json").write_text(json.dumps(data))
    assert ("Augmentation" in named(data_section.summary(read_run(run)))) is shown
