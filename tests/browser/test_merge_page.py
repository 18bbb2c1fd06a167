"""The page of a merge in a real Chromium: silent, readable in both colors, on a telephone too."""

from collections.abc import Iterator
from pathlib import Path

import merge_folders as folders
import pytest
from playwright.sync_api import Browser, Page

from peftkit.report.merge_page import write_merge_report

CONTRASTS = Path(__file__).with_name("contrasts.js").read_text(encoding="utf-8")
WIDE, NARROW = 1200, 380


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page, which must complain of nothing."""
    report = write_merge_report(folders.write_merge(tmp_path / "both"))
    page = browser.new_page(viewport={"width": WIDE, "height": 900}, reduced_motion="reduce")
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert complaints == []


@pytest.mark.parametrize("width", [NARROW, 320, WIDE])
def test_nothing_sticks_out_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for folded in page.locator("details").all():
        folded.evaluate("item => item.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colors(page: Page, scheme: str) -> None:
    page.locator(f'[data-switch="theme"] input[value="{scheme}"]').check()
    for folded in page.locator("details").all():
        folded.evaluate("item => item.open = true")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [words for contrast, words in found if contrast < 4.5] == []


def test_arrow_keys_read_the_trace(page: Page) -> None:
    plot = page.locator('[data-chart="objective"] .plot:visible')
    plot.focus()
    page.keyboard.press("End")
    assert plot.get_attribute("aria-valuetext") == "code = 1.2, Constraint broken 3.900"
    page.keyboard.press("ArrowLeft")
    assert "code = 0.8, Constraint kept 4.300" in str(plot.get_attribute("aria-valuetext"))


def test_the_table_takes_the_place_of_the_trace(page: Page) -> None:
    assert page.locator("#search .as-chart").is_visible()
    page.locator('[data-switch="view"] label', has_text="Table").click()
    assert page.locator("#search .as-table").is_visible()
    assert page.locator("#search .as-table tbody tr").count() == 6
