"""The page of a merge says what its folder says, whole or damaged, and trusts none of it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import merge_folders as folders
import pytest

from peftkit.report.merge_facts import read_merge
from peftkit.report.merge_page import (
    build_merge_page,
    build_merge_text,
    is_merge,
    write_merge_report,
)
from peftkit.report.merge_story import headline, retention, trace, trials

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & \"'`]]>--> {{ 7*7 }}"


class Outline(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def merge(tmp_path: Path) -> Path:
    return folders.write_merge(tmp_path / "both")


def test_the_page_and_the_text_say_what_was_measured(merge: Path) -> None:
    assert is_merge(merge)
    page = write_merge_report(merge).read_text()
    text = (merge / "report.md").read_text()
    shown = " ".join(Outline(page).words)
    for said in (shown, text):
        assert "1*chat + 0.7*code" in said
        assert "It does a part of what its parents do" in said
        assert "88.2 %" in said  # of the gain of `chat`
        assert "42.9 %" in said
        assert "Cutting the ranks lost 12 % of the change." in said
        assert "2.1 % of all that the terms change cancels." in said
        assert "other" in said
        assert "its head has other labels" in said
        assert "merged says 3" in said
        assert "keeps 43 % (39 to 47 %)" in said
        assert "model.layers.29.mlp" in said
        assert "model.layers.9.mlp" not in said  # 20 layers are listed
    assert "| chat, loss | 4.600 | 2.900, −1.700, −1.800 to −1.600 |" in text


def test_the_retention_table_has_every_model_on_every_set(merge: Path) -> None:
    table = retention(read_merge(merge))
    assert table.columns[:5] == ("Set", "Base", "Chat", "Code", "Merged")
    assert [row[0].splitlines()[0] for row in table.rows] == ["chat", "code", "control"]
    assert table.rows[0][4] == "3.100\n\u22121.500\n\u22121.600 to \u22121.400"
    assert table.rows[0][6] == "88.2 %\n84.2 to 92.2"
    assert table.rows[2][6] == "\u2013"
    assert table.rows[2][7] == "90.5 %\n89 to 92"


def test_the_trace_of_one_number_goes_along_that_number(merge: Path) -> None:
    search = read_merge(merge).search
    assert search is not None
    objective, kept = trace(search)
    assert not objective.counted
    assert [line.steps for line in objective.lines] == [(0.0, 0.4, 0.6, 0.7, 0.8), (1.2,)]
    assert kept.lines[-1].values == (0.9, 0.9)
    assert len(trials(search).rows) == 6


def test_the_trace_of_several_numbers_goes_along_the_evaluations(merge: Path) -> None:
    search: dict[str, Any] = json.loads((merge / "search.json").read_text())
    search["over"]["chat"] = [0.0, 1.0]
    folders.write(merge / "search.json", search)
    found = read_merge(merge).search
    assert found is not None
    objective = trace(found)[0]
    assert objective.counted
    assert objective.lines[0].steps == (1, 2, 3, 5, 6)
    assert "by evaluation" in build_merge_page(merge)


def test_a_merge_that_was_not_judged_says_so(tmp_path: Path) -> None:
    merge = folders.write_merge(tmp_path / "plain", searched=False, judged=False)
    assert headline(read_merge(merge)).title == "Not judged"
    page = build_merge_page(merge)
    assert "Nothing was measured." in page
    assert 'href="#search"' not in page


@pytest.mark.parametrize(
    "name", ["merge.json", "metrics.json", "findings.json", "samples.json", "search.json"]
)
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sets": [{}, 3], "terms": 7, "over": []}'])
def test_a_damaged_file_never_fails(merge: Path, name: str, content: str) -> None:
    (merge / name).write_text(content)
    assert "</html>" in build_merge_page(merge)
    assert build_merge_text(merge).startswith("# ")


def test_hostile_words_stay_words(merge: Path) -> None:
    def spoil(value: object) -> object:
        if isinstance(value, dict):
            return {f"{key}": spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return f"{value} {HOSTILE}" if isinstance(value, str) else value

    plain = Outline(build_merge_page(merge)).tags
    paths = sorted(merge.glob("*.json"))
    assert len(paths) == 5
    for path in paths:
        folders.write(path, spoil(json.loads(path.read_text())))
    spoiled = build_merge_page(merge)
    found = Outline(spoiled).tags
    assert found.count("script") <= plain.count("script")
    assert "img" not in found
    assert "49" not in spoiled.split("{{ 7*7 }}")[0][-40:]
