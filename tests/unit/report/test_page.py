"""The page is whole, closed to the network, and shows data without trusting it."""

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import run_folders as folders

from peftkit.errors import WriteError
from peftkit.report.page import build_comparison, build_page, prose, write_report
from peftkit.report.reading import _FILES

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & \"'`]]>--> {{ 7*7 }}"


class Outline(HTMLParser):
    """The tags of a page, their attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] not in ("script", "style"):
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return folders.write_run(tmp_path / "intents")


def hostile_run(folder: Path) -> Path:
    """A run whose every text, keys included, tries to break out."""

    def spoil(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {name: spoil(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        kept = ("severity", "helped")
        return f"{value} {HOSTILE}" if isinstance(value, str) and key not in kept else value

    run = folders.write_run(folder)
    spoiled = 0
    for path in sorted(run.glob("*.json")):
        folders.write(path, spoil(json.loads(path.read_text())))
        spoiled += 1
    assert spoiled == 7
    lock = json.loads((run / "lock.json").read_text())
    lock["versions"][HOSTILE] = HOSTILE
    folders.write(run / "lock.json", lock)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["baselines"][HOSTILE] = metrics["baselines"]["probe"]
    metrics["difference"]["test"][HOSTILE] = metrics["difference"]["test"]["loss"]
    metrics["test"][HOSTILE] = 1.0
    folders.write(run / "metrics.json", metrics)
    (run / "recipe.yaml").write_text(HOSTILE)
    return run


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path, run: Path) -> None:
    clean = Outline(build_page(run))
    page = Outline(build_page(hostile_run(tmp_path / "hostile")))
    shown = "".join(page.words)
    assert shown.count("</script><script>alert(1)</script>") > 40
    assert shown.count("{{ 7*7 }}") > 40
    for tag in ("script", "style", "img", "iframe", "object", "link", "base", "form"):
        assert page.count(tag) == clean.count(tag)
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]


def test_a_hostile_comparison_is_closed_too(tmp_path: Path, run: Path) -> None:
    hostile = hostile_run(tmp_path / "hostile")
    pages = [Outline(build_comparison(runs)) for runs in ([run, run], [run, hostile])]
    assert len({page.count("script") for page in pages}) == 1
    assert pages[1].count("img") == 0


def test_only_the_page_s_own_script_may_run(run: Path) -> None:
    page = build_page(run)
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert (len(scripts), len(styles)) == (1, 1)
    for content in (*scripts, *styles):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not [found for _, found in Outline(page).tags if "style" in found]


def test_nothing_points_outside(run: Path) -> None:
    page = build_page(run)
    targets = [
        value
        for _, found in Outline(page).tags
        for name, value in found.items()
        if name in ("href", "src", "action", "poster", "data", "xlink:href")
    ]
    assert len(targets) >= 6
    assert {target for target in targets if target and not target.startswith("#")} == {"data:,"}
    assert "url(" not in page
    assert "@import" not in page


def test_every_label_and_link_finds_its_target(run: Path) -> None:
    tags = Outline(build_page(run)).tags
    ids = [found["id"] for _, found in tags if "id" in found]
    assert len(ids) == len(set(ids))
    wanted = {
        target
        for _, found in tags
        for name in ("aria-labelledby", "aria-controls", "aria-describedby")
        if (target := found.get(name))
    } | {found["href"][1:] for tag, found in tags if tag == "a" and found.get("href")}  # type: ignore[index]
    assert len(wanted) >= 12
    assert wanted <= set(ids)


@pytest.mark.parametrize("file", sorted(_FILES))
def test_a_page_without_one_file_says_so(run: Path, file: str) -> None:
    (run / file).unlink()
    assert f"<code>{file}</code> is missing" in build_page(run)


def test_an_empty_folder_still_makes_a_page(tmp_path: Path) -> None:
    page = build_page(tmp_path)
    assert page.count("is missing:") == len(_FILES)
    assert "No verdict yet" in page


def test_no_figure_that_is_not_one_is_shown(run: Path) -> None:
    lines = folders.step_lines(300)
    folders.write_lines(run / "steps.jsonl", [{**line, "loss": float("nan")} for line in lines])
    page = "".join(Outline(build_page(run)).words)
    assert not re.search(r"\b(nan|inf|None|undefined|null)\b", page, re.IGNORECASE)


@pytest.mark.parametrize("letter", ["a", "<", "\U0001f642", "&"])
def test_ten_thousand_steps_and_endless_samples_stay_under_two_megabytes(
    run: Path, letter: str
) -> None:
    folders.write_lines(run / "steps.jsonl", folders.step_lines(10_000))
    every = [{"step": step, "loss": 1.0, "interval": [0.9, 1.1]} for step in range(0, 10_000, 20)]
    folders.write_lines(run / "evaluations.jsonl", every)
    words = letter * 6_000
    sample = {"where": words, "prompt": words, "expected": words, "before": words, "after": words}
    folders.write(run / "samples.json", [{**sample, "right": True}] * 300)
    finding = {"id": words, "severity": "warning", "sentence": words, "advice": words}
    folders.write(run / "findings.json", [finding] * 300)
    facts = folders.data()
    facts["train"]["skipped"] = [{"where": words, "why": words}] * 500
    facts["leakage"]["pairs"] *= 500
    folders.write(run / "data.json", facts)
    (run / "recipe.yaml").write_text(words * 10)
    assert len(build_page(run).encode()) < 2_000_000


def test_the_samples_that_do_not_fit_are_counted(run: Path) -> None:
    samples = [{**sample, "prompt": "word " * 700} for sample in folders.samples(400)]
    folders.write(run / "samples.json", samples)
    page = build_page(run)
    shown = page.count('<article class="sample')
    assert 50 < shown < 400
    assert f"{400 - shown} more in <code>samples.json</code>" in page


def test_a_report_is_written_beside_the_run(run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    page = write_report(run)
    assert page == run / "report.html"
    assert {path.name for path in run.iterdir()} - before == {"report.html", "report.md"}
    assert page.read_text(encoding="utf-8") == build_page(run)


def test_the_page_says_the_verdict_as_it_was_given(run: Path) -> None:
    assert (
        f'<meta name="description" content="{folders.SENTENCE}">' in write_report(run).read_text()
    )
    assert folders.SENTENCE in (run / "report.md").read_text()


def test_where_nothing_can_be_written_the_error_says_so(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(WriteError, match=r"cannot write .*report\.html"):
        write_report(run)


def test_the_same_folder_makes_the_same_page(run: Path) -> None:
    assert build_page(run) == build_page(run)


def test_code_in_prose_is_set_as_code() -> None:
    assert prose("use `a<b` & `c`") == "use <code>a&lt;b</code> &amp; <code>c</code>"
    assert prose("an odd ` stays") == "an odd ` stays"
