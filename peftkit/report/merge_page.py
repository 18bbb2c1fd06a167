"""Write the report of a merge into its folder: the page that runs have, and the same in text."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from peftkit.report import merge_story, wording
from peftkit.report.card_merge import MERGE_FILE
from peftkit.report.merge_facts import read_merge
from peftkit.report.page import SAMPLES_BYTES, draw_all, render, within, write_pages
from peftkit.report.text import fenced, finding_in_text, grid, prose, section, table_in_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from peftkit.report.merge_facts import Merge, Sample

_MOST_SAMPLES = 20


def is_merge(folder: Path) -> bool:
    """Whether the folder holds a merge."""
    return (folder / MERGE_FILE).is_file()


def write_merge_report(folder: Path) -> Path:
    """The path of `report.html`, written into the folder of a merge after `report.md`."""
    return write_pages(folder, build_merge_text(folder), build_merge_page(folder))


def build_merge_page(folder: Path) -> str:
    """The report of one merge as HTML."""
    facts = read_merge(folder)
    samples = within(SAMPLES_BYTES, facts.samples, _words_of)
    return render(
        "merge.html.j2",
        merge=facts,
        told=merge_story,
        title=f"{facts.name}: peftkit merge",
        headline=merge_story.headline(facts),
        drawings=draw_all(merge_story.trace(facts.search)) if facts.search else [],
        samples=samples,
        samples_left=len(facts.samples) - len(samples),
        findings=facts.findings,
    )


def _words_of(sample: Sample) -> list[str | None]:
    said = chain.from_iterable(sample.said)
    return [sample.where, sample.set, sample.where, sample.prompt, sample.expected, *said]


def build_merge_text(folder: Path) -> str:
    """The report of one merge as Markdown."""
    facts = read_merge(folder)
    sections = [
        _opening(facts),
        section("Formula", _formula(facts)),
        section("Retention", _retention(facts)),
        section("Search", _search(facts)),
        section("Samples", _samples(facts)),
        section("Findings", _findings(facts)),
        section("Provenance", _provenance(facts)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _opening(merge: Merge) -> str:
    said = merge_story.headline(merge)
    lines = [
        f"# {prose(merge.name)}",
        f"**{said.title}.** {prose(said.lead)}",
        f"{prose(merge_story.findings_line(merge))}.",
    ]
    lines += [prose(f"`{item.file}` {item.problem}: {item.effect}.") for item in merge.missing]
    return "\n\n".join(lines)


def _formula(merge: Merge) -> Iterator[str]:
    yield fenced(merge_story.formula(merge))
    if cut := merge_story.cut_sentence(merge):
        yield cut
    yield from map(table_in_text, merge_story.terms(merge))
    yield from map(table_in_text, merge_story.layers(merge))


def _retention(merge: Merge) -> Iterator[str]:
    found = merge_story.retention(merge)
    if not found.rows:
        return
    lines = tuple(tuple(cell.replace("\n", ", ") for cell in line) for line in found.rows)
    yield table_in_text(replace(found, rows=lines))
    for name, why in merge.left_out:
        yield prose(f"`{name}` was not judged: {why}.")
    yield from map(table_in_text, merge_story.every_figure(merge))


def _search(merge: Merge) -> Iterator[str]:
    if merge.search is not None:
        yield prose(merge_story.search_line(merge.search))
        found = merge_story.trials(merge.search)
        yield grid(found.columns, found.rows)


def _samples(merge: Merge) -> Iterator[str]:
    for sample in merge.samples[:_MOST_SAMPLES]:
        mark = {True: ": right", False: ": wrong", None: ""}[sample.right]
        said = [("prompt", sample.prompt), ("expected", sample.expected), *sample.said]
        blocks = [
            f"{prose(wording.sentence_case(name))}:\n\n{fenced(words)}"
            for name, words in said
            if words is not None
        ]
        title = prose(f"{sample.set}: {sample.where}")
        yield "\n\n".join([f"### {title}{mark}", *blocks])


def _findings(merge: Merge) -> Iterator[str]:
    if merge.findings:
        yield "\n".join(map(finding_in_text, merge.findings))


def _provenance(merge: Merge) -> Iterator[str]:
    yield from map(table_in_text, merge_story.provenance(merge))
    yield from map(table_in_text, merge_story.recipe(merge))
