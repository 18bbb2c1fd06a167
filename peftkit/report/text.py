"""A run's report as Markdown: what the page says, for terminals, reviews and screen readers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from peftkit.report import data_section, stage_tables, story, tables, wording
from peftkit.report.drift import drift_bars
from peftkit.report.reading import read_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from peftkit.report.facts import Finding, Run, Sample
    from peftkit.report.tables import Table

_MOST_SAMPLES = 20
_LONGEST_TEXT = 2_000
_LONGEST_RECIPE = 60_000


def build_text(run: Path) -> str:
    """The report of one run as Markdown."""
    facts = read_run(run)
    sections = [
        _opening(facts),
        section("Stages", _stages(facts)),
        section("Figures", _figures(facts)),
        section("How training went", _training(facts)),
        section("Compared with", _comparisons(facts)),
        section("What it remembers", map(table_in_text, tables.remembered(facts))),
        section("Samples", _samples(facts)),
        section("Findings", _findings(facts)),
        section("Data", _data(facts)),
        section("Plan", map(table_in_text, tables.plan(facts))),
        section("Recipe", _recipe(facts)),
        section("Environment", map(table_in_text, tables.environment(facts))),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def section(title: str, blocks: Iterator[str]) -> str:
    """Some blocks under a heading; nothing at all without any."""
    body = list(blocks)
    return "\n\n".join([f"## {title}", *body]) if body else ""


def _opening(run: Run) -> str:
    said = story.headline(run)
    joint = ", " if said.helped in ("yes", "no") else ": "
    lines = [
        f"# {prose(run.name)}",
        f"**{said.answer}**{joint}{prose(wording.stopped(said.sentence))}",
        prose(f"{wording.sentence_case(story.byline(run))}. {story.findings_line(run)}."),
    ]
    if run.missing:
        absent = [
            f"- {prose(f'`{item.file}` {item.problem}: {item.effect}')}" for item in run.missing
        ]
        lines.append("\n".join(["What is missing:", "", *absent]))
    return "\n\n".join(lines)


def _stages(run: Run) -> Iterator[str]:
    yield from map(table_in_text, stage_tables.stages(run))
    if needed := stage_tables.stands_on(run):
        yield prose(needed)


def _figures(run: Run) -> Iterator[str]:
    rows = [
        (
            item.label,
            item.before,
            item.after,
            f"{item.change} ({item.reach})" if item.reach else item.change,
            item.judgment,
        )
        for item in story.figures(run)
    ]
    if rows:
        columns = ("Metric", "Before", "After", f"Change ({story.CONFIDENCE} interval)", "")
        yield f"On {story.judged_on(run)}:"
        yield grid(columns, rows)
    facts = [
        f"- {fact.label}: {fact.value}{f' ({fact.note})' if fact.note else ''}"
        for fact in story.glance(run)
    ]
    if facts:
        yield "\n".join(facts)
    for table in tables.figures(run):
        yield table_in_text(table, under=f"Every figure: {table.title.lower()}")


def _training(run: Run) -> Iterator[str]:
    if summary := story.curve_summary(run):
        yield prose(summary)
    curve = tables.curve(run)
    if curve.rows:
        yield grid(curve.columns, curve.rows)
    if curve.note:
        yield prose(curve.note)
    if item := drift_bars(run):
        yield grid((item.label, "Change"), [(bar.name, bar.value) for bar in item.bars])
        yield item.note


def _comparisons(run: Run) -> Iterator[str]:
    for item in story.comparisons(run):
        rows = [(bar.name, bar.value, bar.reach) for bar in item.bars]
        yield grid((item.label, "Value", f"{story.CONFIDENCE} interval"), rows)
        if item.note:
            yield item.note


def _samples(run: Run) -> Iterator[str]:
    for sample in run.samples[:_MOST_SAMPLES]:
        yield _sample(sample)
    left = len(run.samples) - _MOST_SAMPLES
    if left > 0:
        yield f"{wording.plural(left, 'more sample')} in `samples.json`."


def _sample(sample: Sample) -> str:
    mark = {True: ": right", False: ": wrong", None: ""}[sample.right]
    parts = [
        ("Prompt", sample.prompt),
        ("Expected", sample.expected),
        ("Before", sample.before),
        ("After", sample.after),
    ]
    said = [f"{label}:\n\n{fenced(words)}" for label, words in parts if words is not None]
    return "\n\n".join([f"### {prose(sample.where)}{mark}", *said])


def _findings(run: Run) -> Iterator[str]:
    if run.findings:
        yield "\n".join(finding_in_text(finding) for finding in run.findings)


def finding_in_text(finding: Finding) -> str:
    """A finding as an entry of a list."""
    sentence = prose(wording.stopped(finding.sentence))
    advice = f"\n  Advice: {prose(wording.stopped(finding.advice))}" if finding.advice else ""
    return f"- **{finding.severity}** `{finding.id}`: {sentence}{advice}"


def _data(run: Run) -> Iterator[str]:
    if run.splits:
        yield tables.leakage_sentence(run)
        yield from map(table_in_text, data_section.summary(run))
        yield from map(table_in_text, data_section.row_by_row(run))


def _recipe(run: Run) -> Iterator[str]:
    if run.recipe is not None:
        yield fenced(run.recipe, "yaml", limit=_LONGEST_RECIPE)
    yield from (table_in_text(table) for table in tables.resolved(run))


def table_in_text(table: Table, under: str = "") -> str:
    """A table under its title, or `under` another one."""
    title = under or table.title
    parts = [f"### {title}" if title else "", grid(table.columns, table.rows), prose(table.note)]
    return "\n\n".join(filter(None, parts))


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; without columns the first row's cells have no header."""
    width = len(columns) or max(len(row) for row in rows)
    head = columns or ("",) * width
    lines = [head, ("---",) * width, *rows]
    return "\n".join(
        f"| {' | '.join(cell if cell == '---' else _cell(cell) for cell in line)} |"
        for line in lines
    )


def _cell(words: str) -> str:
    return prose(" ".join(words.split())).replace("|", "\\|")


def prose(words: str) -> str:
    """Words that Markdown shows as they are; `code` stays code."""
    parts = re.split(r"(`[^`\n]+`)", words)
    return "".join(part if at % 2 else _plain(part) for at, part in enumerate(parts))


def _plain(words: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]~])", r"\\\1", words.replace("\n", " "))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fenced(words: str, language: str = "text", *, limit: int = _LONGEST_TEXT) -> str:
    """A code block that no run of backticks inside can end."""
    longest = max((len(found) for found in re.findall(r"`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{wording.clipped(words, limit)}\n{fence}"
