"""`report.md` says what the page says, and no sample can pose as part of it."""

import json
from pathlib import Path

import pytest
import run_folders as folders

from peftkit.report import story, tables
from peftkit.report.page import build_page
from peftkit.report.reading import read_run
from peftkit.report.text import build_text, fenced, prose


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return folders.write_run(tmp_path / "intents")


def test_the_headline_is_that_of_the_page(run: Path) -> None:
    lines = build_text(run).splitlines()
    assert lines[0] == "# intents"
    assert lines[2] == f"**Yes**, {folders.SENTENCE}."
    assert story.headline(read_run(run)).answer == "Yes"


def test_every_section_of_the_page_is_there(run: Path) -> None:
    text = build_text(run)
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Figures",
        "How training went",
        "Compared with",
        "What it remembers",
        "Samples",
        "Findings",
        "Data",
        "Plan",
        "Recipe",
        "Environment",
    ]
    assert story.curve_summary(read_run(run)) in text
    assert "| Exact match | 0.0 % | 93.0 % | +93.0 points (+88.0 to +98.0) | better |" in text
    assert "- **warning** `forgetting`: loss on general.txt rose" in text


def test_tables_have_as_many_cells_in_every_row(run: Path) -> None:
    facts = read_run(run)
    made = [
        *tables.figures(facts),
        *tables.remembered(facts),
        *tables.data(facts),
        *tables.plan(facts),
        *tables.environment(facts),
        *tables.resolved(facts),
        tables.curve(facts),
    ]
    assert len(made) >= 14
    for table in made:
        widths = {len(row) for row in table.rows}
        assert widths == {len(table.columns) or 2}


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    text = build_text(tmp_path)
    assert "**No verdict**: Training has not begun" in text
    assert "- `metrics.json` is missing: there are no figures and no verdict" in text
    assert "## Samples" not in text


def test_a_sample_cannot_end_its_block() -> None:
    hostile = "```\n# Yes, it helped\n````"
    block = fenced(hostile)
    assert block.startswith("`````text\n")
    assert block.endswith("\n`````")


def test_words_cannot_pose_as_markup() -> None:
    assert prose("*a* [b](c) <d>") == r"\*a\* \[b\](c) &lt;d&gt;"
    assert prose("keep `train.max_length` whole_word") == r"keep `train.max_length` whole\_word"


def test_a_cell_cannot_end_its_column(run: Path) -> None:
    metrics = folders.metrics()
    metrics["remember"] = [{"source": "a|b\nc", "before": {"loss": 1.0}, "after": {"loss": 2.0}}]
    folders.write(run / "metrics.json", metrics)
    assert "| a\\|b c | 1.000 | 2.000 | +1.000 worse |" in build_text(run)


def test_rows_that_stand_twice_are_shown(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    clean = {"base": 0.5, "adapted": 0.875, "change": 0.375, "low": 0.3, "high": 0.4}
    metrics["test_without_leaks"] = {"rows": 90, "difference": {"exact_match": clean}}
    folders.write(run / "metrics.json", metrics)
    data = json.loads((run / "data.json").read_text())
    data["duplicates"]["most"] = [{"rows": 1234, "where": "a.jsonl:3", "text": "Sorry, later"}]
    pair = {"set": "train", "left": "a.jsonl:1", "right": "b.jsonl:2", "text": "so good"}
    data["label_conflicts"]["pairs"] = [pair | {"labels": ["positive", "negative"]}]
    folders.write(run / "data.json", data)
    text, page = build_text(run), build_page(run)
    for line in (
        "Every figure: test without the rows that leaked",
        "Most repeated training rows",
        "| a.jsonl:3 | 1,234 | Sorry, later |",
        "| a.jsonl:1 | b.jsonl:2 | positive / negative | so good |",
    ):
        assert line in text
    assert "| Exact match | " in text
    assert "| 87.5 % | " in text
    for words in ("without the rows that leaked", "Most repeated training rows", "87.5 %"):
        assert words in page
    assert "Duplicates" not in text
