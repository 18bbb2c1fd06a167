"""The report in a real Chromium: it draws, switches and reads, by mouse, keys and listening."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import run_folders as folders
from playwright.sync_api import Browser, Page, expect
from syrupy.assertion import SnapshotAssertion

from peftkit.report.page import build_comparison, write_report

WIDE, NARROW = 1200, 380

CONTRASTS = Path(__file__).with_name("contrasts.js").read_text(encoding="utf-8")

OUTLINE = """() => [...document.querySelectorAll("h1, h2, h3, h4")]
  .map((heading) => "  ".repeat(heading.tagName[1] - 1) + heading.textContent.trim()).join("\\n")"""


@dataclass
class Opened:
    """A page, and what it asked for or complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, file: Path) -> Page:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())
        return self.page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(folders.write_run(tmp_path_factory.mktemp("runs") / "intents"))


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    page = browser.new_page(
        viewport={"width": WIDE, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    page.set_default_timeout(10_000)
    yield Opened(page)
    page.close()


@pytest.fixture
def page(opened: Opened, report: Path) -> Page:
    return opened.open(report)


def visible_plot(page: Page, chart: str = "loss"):
    return page.locator(f'[data-chart="{chart}"] .plot:visible')


def choose(page: Page, switch: str, choice: str) -> None:
    page.locator(f'[data-switch="{switch}"] label', has_text=choice).click()


def test_it_opens_in_silence_and_asks_for_nothing(opened: Opened, report: Path) -> None:
    page = opened.open(report)
    page.wait_for_load_state("networkidle")
    assert opened.complaints == []
    assert [url for url in opened.requests if url != "data:,"] == [report.as_uri()]
    expect(page).to_have_title("intents: peftkit report")


def test_hostile_samples_run_nothing(opened: Opened, tmp_path: Path) -> None:
    run = folders.write_run(tmp_path / "hostile")
    hostile = (
        "</script></pre><script>document.title = 'taken'</script><img src=x onerror='taken()'>"
    )
    samples = [{**sample, "after": hostile, "prompt": hostile} for sample in folders.samples()]
    folders.write(run / "samples.json", samples)
    page = opened.open(write_report(run))
    expect(page).to_have_title("intents: peftkit report")
    assert page.locator(".sample pre").filter(has_text="onerror").count() == 24
    assert opened.complaints == []
    assert len([url for url in opened.requests if url != "data:,"]) == 1


def test_the_policy_stops_what_slips_in(opened: Opened, report: Path) -> None:
    page = opened.open(report)
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "document.title = 'taken'";
          document.body.append(script);
          const image = new Image();
          image.src = "http://127.0.0.1:9/x.png";
          document.body.append(image);
        }"""
    )
    expect(page).to_have_title("intents: peftkit report")
    assert len(opened.complaints) >= 2
    assert all("Content Security Policy" in complaint for complaint in opened.complaints)


def test_charts_draw_what_was_recorded(page: Page) -> None:
    plot = visible_plot(page)
    assert plot.locator("path.line").count() == 3
    assert plot.locator("path.mark").count() == 7
    assert plot.locator("line.whisker").count() == 7
    box = plot.locator("path.line.bold").bounding_box()
    assert box is not None
    assert box["width"] > 900
    assert box["height"] > 150
    for chart in ("learning-rate", "gradient-norm"):
        assert visible_plot(page, chart).locator("path.line").count() == 1
    assert page.locator("#compared .bars tbody tr").count() == 8
    assert page.locator("#data .bars tbody tr").count() == 5
    assert page.locator(".tile .strip").count() == 2


def test_the_scale_switches(page: Page) -> None:
    assert visible_plot(page).get_attribute("data-scale") == "linear"
    choose(page, "scale", "Log")
    assert visible_plot(page).get_attribute("data-scale") == "log"
    page.keyboard.press("ArrowLeft")
    assert visible_plot(page).get_attribute("data-scale") == "linear"


def test_the_table_takes_the_place_of_the_charts(page: Page) -> None:
    table = page.locator(".as-table table")
    expect(table).to_be_hidden()
    choose(page, "view", "Table")
    expect(table).to_be_visible()
    expect(page.locator(".chart").first).to_be_hidden()
    assert 40 <= table.locator("tbody tr").count() <= 50
    choose(page, "view", "Chart")
    expect(table).to_be_hidden()


def test_pointing_at_a_curve_reads_it(page: Page) -> None:
    plot = visible_plot(page)
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    expect(plot.locator(".tip b")).to_have_text("Step 150")
    expect(plot.locator(".tip")).to_contain_text("Validation")
    assert plot.locator(".dot").count() == 3
    mark, dot = (
        plot.locator(what).nth(at).bounding_box() for what, at in ((".mark", 3), (".dot", 2))
    )
    assert mark is not None
    assert dot is not None
    assert abs(mark["y"] + mark["height"] / 2 - dot["y"] - dot["height"] / 2) < 1.5
    page.mouse.move(5, 5)
    expect(plot.locator(".tip")).to_be_hidden()


def test_arrow_keys_read_a_curve(page: Page) -> None:
    plot = visible_plot(page)
    plot.focus()
    page.keyboard.press("Home")
    assert plot.get_attribute("aria-valuetext") == "step 0, Validation 4.100"
    page.keyboard.press("ArrowRight")
    assert plot.get_attribute("aria-valuenow") == "1"
    page.keyboard.press("End")
    expect(plot.locator(".tip b")).to_have_text("Step 300")
    page.keyboard.press("PageDown")
    assert plot.get_attribute("aria-valuenow") == "270"
    page.keyboard.press("Escape")
    expect(plot.locator(".tip")).to_be_hidden()


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_reading_stays_on_the_page(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    plot = visible_plot(page)
    for key in ("Home", "End"):
        plot.focus()
        page.keyboard.press(key)
        tip = plot.locator(".tip").bounding_box()
        assert tip is not None
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= width


def test_samples_are_sifted(page: Page) -> None:
    samples, status = page.locator(".sample:visible"), page.locator(".shown")
    expect(samples).to_have_count(6)
    choose(page, "judged", "Wrong")
    expect(samples).to_have_count(2)
    expect(status).to_have_text("2 of 12 shown")
    assert page.locator(".sample:visible .judged").all_inner_texts() == ["wrong", "wrong"]
    page.keyboard.press("ArrowLeft")
    assert set(page.locator(".sample:visible .judged").all_inner_texts()) == {"right"}
    page.get_by_role("button", name="Show all 10").click()
    expect(samples).to_have_count(10)
    choose(page, "judged", "All")
    expect(samples).to_have_count(12)
    expect(page.locator(".more")).to_be_hidden()


def test_tabs_open_by_mouse_and_by_arrow_keys(page: Page) -> None:
    panels = page.locator("[role=tabpanel]:visible")
    expect(panels).to_have_count(1)
    page.get_by_role("tab", name="Recipe").click()
    expect(panels).to_have_attribute("id", "recipe")
    expect(panels.locator("pre")).to_contain_text("model: builtin:tiny")
    for key, opened in (
        ("ArrowRight", "environment"),
        ("ArrowRight", "plan"),
        ("ArrowLeft", "environment"),
        ("Home", "plan"),
        ("End", "environment"),
    ):
        page.keyboard.press(key)
        expect(panels).to_have_attribute("id", opened)
        expect(page.get_by_role("tab", selected=True)).to_be_focused()
    assert page.locator('[role=tab][tabindex="-1"]').count() == 2


def test_an_address_opens_its_tab(page: Page) -> None:
    page.evaluate("location.hash = '#recipe'")
    expect(page.locator("[role=tabpanel]:visible")).to_have_attribute("id", "recipe")


def test_colors_follow_the_system_until_told_otherwise(page: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    assert light != dark
    choose(page, "theme", "Light")
    assert page.evaluate(paper) == light
    page.emulate_media(color_scheme="light")
    choose(page, "theme", "Dark")
    assert page.evaluate(paper) == dark
    choose(page, "theme", "Auto")
    assert page.evaluate(paper) == light


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((item) => { item.open = true; })")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colors(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    unfold(page)
    seen = 0
    for tab in ("Plan", "Recipe", "Environment"):
        page.get_by_role("tab", name=tab).click()
        found = page.evaluate(CONTRASTS)
        assert [words for contrast, words in found if contrast < 4.5] == []
        seen += len(found)
    assert seen > 800


@pytest.mark.parametrize("width", [NARROW, 320, 768, WIDE])
def test_nothing_sticks_out_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    unfold(page)
    for tab in ("Plan", "Recipe", "Environment"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
    choose(page, "view", "Table")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_long_words_do_not_stick_out_either(opened: Opened, tmp_path: Path) -> None:
    run = folders.write_run(tmp_path / "long", name="n" * 90)
    word = "W" * 900
    folders.write(
        run / "samples.json", [{"where": word, "prompt": word, "after": word, "right": True}]
    )
    findings = [{"id": word, "severity": "problem", "sentence": word, "advice": f"`{word}`"}]
    folders.write(run / "findings.json", findings)
    metrics = folders.metrics()
    metrics["verdict"]["sentence"] = word
    metrics["remember"][0]["source"] = word
    metrics["baselines"][word] = metrics["baselines"]["probe"]
    folders.write(run / "metrics.json", metrics)
    facts = folders.data()
    facts["train"]["sources"][0]["source"] = word
    folders.write(run / "data.json", facts)
    page = opened.open(write_report(run))
    unfold(page)
    for width in (NARROW, WIDE):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_first_key_leads_past_the_navigation(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the report")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the report")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_every_control_is_reached_by_tab_and_named(page: Page) -> None:
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                """() => {
                  const at = document.activeElement;
                  return at.name || at.id || at.ariaLabel || at.textContent.trim();
                }"""
            )
        )
    assert {"theme", "view", "scale", "judged", "tab-plan", "Loss by step: read values"} <= reached
    assert "" not in reached


def test_paper_shows_every_panel_and_sample(page: Page) -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".panel:visible").count() == 3
    assert page.locator(".sample:visible").count() == 12
    assert page.locator("details:not([open])").count() == 0
    assert page.locator(".switch:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.locator(".panel:visible").count() == 1
    assert page.locator(".sample:visible").count() == 6
    assert page.locator("details[open]").count() == 0


def test_without_scripts_everything_can_be_read(browser: Browser, report: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(report.as_uri())
    assert page.locator(".panel:visible").count() == 3
    assert page.locator(".sample:visible").count() == 12
    assert page.locator(".plot:visible").count() == 3
    assert page.locator(".as-table table:visible").count() == 1
    assert page.locator(".needs-script:visible").count() == 0
    page.close()


def test_the_structure_is_as_agreed(page: Page, snapshot: SnapshotAssertion) -> None:
    assert page.evaluate(OUTLINE) == snapshot(name="outline")
    assert page.locator("header.top").aria_snapshot() == snapshot(name="header")
    assert page.locator(".verdict").aria_snapshot() == snapshot(name="verdict")
    assert page.locator("#figures").aria_snapshot() == snapshot(name="figures")
    assert page.locator("#compared").aria_snapshot() == snapshot(name="compared")
    assert page.locator("#curves").aria_snapshot() == snapshot(name="curves")
    assert page.locator(".sample").first.aria_snapshot() == snapshot(name="sample")
    assert page.locator("#findings").aria_snapshot() == snapshot(name="findings")
    assert page.locator("#details").aria_snapshot() == snapshot(name="details")


def test_a_run_that_stopped_early_opens_too(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    page = opened.open(write_report(tmp_path / "empty"))
    expect(page.locator("h1")).to_have_text("No verdict yet")
    expect(page.locator(".missing li")).to_have_count(10)
    assert opened.complaints == []


def test_ten_thousand_steps_are_drawn_and_read(opened: Opened, tmp_path: Path) -> None:
    page = opened.open(write_report(folders.write_run(tmp_path / "long", steps=10_000)))
    plot = visible_plot(page)
    plot.focus()
    page.keyboard.press("End")
    expect(plot.locator(".tip b")).to_have_text("Step 10,000")
    assert opened.complaints == []


def test_runs_are_compared_on_one_page(
    opened: Opened, tmp_path: Path, snapshot: SnapshotAssertion
) -> None:
    runs = [
        folders.write_run(tmp_path / "a", name="small", adapter__rank=4),
        folders.write_run(tmp_path / "b", name="large", steps=400, seed=1),
    ]
    (tmp_path / "comparison.html").write_text(build_comparison(runs), encoding="utf-8")
    page = opened.open(tmp_path / "comparison.html")
    assert visible_plot(page, "training").locator("path.line").count() == 2
    assert visible_plot(page, "validation").locator("path.mark").count() == 14
    choose(page, "scale", "Log")
    assert visible_plot(page, "training").get_attribute("data-scale") == "log"
    plot = visible_plot(page, "training")
    plot.focus()
    page.keyboard.press("End")
    expect(plot.locator(".tip b")).to_have_text("Step 400")
    assert page.evaluate(OUTLINE) == snapshot(name="outline")
    assert page.locator("#recipes").aria_snapshot() == snapshot(name="recipes")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert [words for contrast, words in page.evaluate(CONTRASTS) if contrast < 4.5] == []
    page.set_viewport_size({"width": NARROW, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW
    assert opened.complaints == []
