"""Write a run's report: one page that needs nothing but itself, and the same in text.

The page may be opened from anywhere and shows text that nobody has vouched for, so its policy lets
nothing load and runs only its own script, known by digest; every text goes through autoescaping.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from peftkit.errors import WriteError
from peftkit.report import (
    charts,
    comparison,
    data_section,
    drift,
    frontier,
    stage_tables,
    story,
    tables,
    wording,
)
from peftkit.report.reading import read_run
from peftkit.report.record import RunFolder
from peftkit.report.text import build_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peftkit.report.facts import Finding, Sample

T = TypeVar("T")

PARTS = Path(__file__).with_name("template")

SAMPLES_BYTES = 500_000
FINDINGS_BYTES = 200_000
"""What these may take of the page, as UTF-8 after escaping; the run folder has the rest."""

LONGEST_TEXT = 4_000
LONGEST_RECIPE = 60_000
_MARKUP_BYTES = 900


def write_report(run: Path) -> Path:
    """The path of `report.html`, written into the run folder after `report.md`."""
    return write_pages(run, build_text(run), build_page(run))


def write_pages(run: Path, text: str, page: str) -> Path:
    """The path of the page, written into a folder after the same in text.

    Raises:
        WriteError: there is no room, or no permission.
    """
    folder = RunFolder(run)
    try:
        folder.write("report.md", text)
        return folder.write("report.html", page)
    except OSError as problem:
        raise WriteError(
            f"cannot write the report: {(problem.strerror or str(problem)).lower()}",
            hint="make room or give the run folder write permission, then `peftkit report RUN`",
        ) from problem


def build_page(run: Path) -> str:
    """The report of one run as HTML."""
    facts = read_run(run)
    samples = within(SAMPLES_BYTES, facts.samples, _words_of_sample)
    findings = within(FINDINGS_BYTES, facts.findings, _words_of_finding)
    return render(
        "report.html.j2",
        run=facts,
        title=f"{facts.name}: peftkit report",
        headline=story.headline(facts),
        drawings=draw_all(story.curves(facts)),
        samples=samples,
        samples_left=len(facts.samples) - len(samples),
        findings=findings,
        findings_left=len(facts.findings) - len(findings),
        recipe=None if facts.recipe is None else wording.clipped(facts.recipe, LONGEST_RECIPE),
    )


def build_comparison(runs: Sequence[Path]) -> str:
    """Several runs on one page as HTML."""
    named = comparison.named([read_run(run) for run in runs])
    return render(
        "comparison.html.j2",
        title=f"{wording.plural(len(named), 'run')} compared: peftkit report",
        runs=named,
        drawings=draw_all(comparison.curves(named)),
        comparison=comparison,
        points=frontier.points(named),
        frontier=frontier,
    )


def within(budget: int, items: Sequence[T], words: Callable[[T], Sequence[str | None]]) -> list[T]:
    """The first of the items, as many as fit the budget once their words are escaped."""
    kept = []
    for item in items:
        shown = (escape(said[:LONGEST_TEXT]) for said in words(item) if said)
        budget -= _MARKUP_BYTES + sum(len(said.encode()) for said in shown)
        if budget < 0:
            break
        kept.append(item)
    return kept


def _words_of_sample(sample: Sample) -> tuple[str | None, ...]:
    # The place is shown twice, once for those who only listen.
    place = sample.where
    return place, place, sample.prompt, sample.expected, sample.before, sample.after


def _words_of_finding(finding: Finding) -> tuple[str, ...]:
    return finding.id, finding.sentence, finding.advice


def draw_all(made: Sequence[charts.Chart]) -> list[charts.Drawing]:
    """The charts that have something to draw."""
    return [drawing for chart in made if (drawing := charts.draw(chart)) is not None]


def prose(words: str) -> str:
    """Words as HTML, with `code` set as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(words))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "prose": prose,
        "clipped": lambda words: wording.clipped(words, LONGEST_TEXT),
        "figure": wording.figure,
        "stopped": wording.stopped,
        "swatch": charts.swatch,
    }
    environment.filters |= filters
    pieces = {"story": story, "tables": tables, "data_section": data_section}
    environment.globals |= {**pieces, "stage_tables": stage_tables}
    environment.globals["drift_bars"] = drift.drift_bars
    return environment


def render(template: str, **context: Any) -> str:
    """A page from its template, with style, script and the policy that lets only these in."""
    style = (PARTS / "page.css").read_text(encoding="utf-8")
    script = (PARTS / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    made = _environment().get_template(template)
    return made.render(style=style, script=script, policy=policy, **context)


def _digest(content: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
