"""What the card of a merge says: its formula, its parents by digest, what it cost, what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.report import tolerant, wording
from peftkit.report.text import prose
from peftkit.report.tolerant import number, table, text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from peftkit.report.tolerant import Loose

MERGE_FILE = "merge.json"
DIGITS = 4
"""Of a figure in a table."""
_HEADS = {
    "yes": "**It does what it was made for.**",
    "no": "**It does not do what it was made for:** prefer one of its parents.",
}


def read_merge(adapter: Path) -> Loose:
    """What a merge says of itself; nothing where the adapter is none."""
    said = table(tolerant.read_json(adapter / MERGE_FILE).value)
    return said if _listed(said, "parents") else {}


def verdict_of_merge(said: Loose) -> str | None:
    """Whether it does what it was made for; None where that was not judged."""
    verdict = table(table(said.get("evaluation")).get("verdict"))
    if (sentence := text(verdict.get("sentence"))) is None:
        return None
    helped = text(verdict.get("helped")) or ""
    head = _HEADS.get(helped, "**Whether it does what it was made for is not clear.**")
    return f"{head} {wording.stopped(wording.sentence_case(prose(sentence)))}"


def made_of(said: Loose) -> Iterator[str]:
    """Formula, parents and cost."""
    if not said:
        return
    recipe, error = table(said.get("recipe")), table(said.get("error"))
    method = text(table(recipe.get("method")).get("name")) or "sum"
    how = "the exact sum" if method == "sum" else f"the method `{method}`"
    lost = number(error.get("relative")) or 0.0
    cut = f"Cutting its ranks lost {lost:.2g} of the change." if lost else "Nothing was cut off."
    yield "## What it was made of"
    yield f"`{text(said.get('expression')) or 'a formula'}`, by {how}. {cut}"
    weights = table(said.get("weights"))
    rows = [
        [
            prose(text(each.get("name")) or "unknown"),
            _shown(weights.get(text(each.get("name")) or "")),
            f"`{text(each.get('digest')) or 'unknown'}`",
        ]
        for each in map(table, _listed(said, "parents"))
    ]
    yield _grid(["parent", "times", "digest"], rows)
    names = " ".join(f"--adapter {row[0]}=PATH" for row in rows)
    yield (
        "Who has these parents can make it again, byte for byte, and compare: "
        f"`peftkit merge --reproduce DIR {names}`."
    )


def measured_merge(said: Loose) -> list[str]:
    """Base, parents and merge on every set; nothing where it was not judged."""
    sets = [table(each) for each in _listed(table(said.get("evaluation")), "sets")]
    if not sets:
        return []
    names = list(dict.fromkeys(name for each in sets for name in table(each.get("models"))))
    rows = [
        [
            prose(text(each.get("name")) or "unknown"),
            prose(text(each.get("metric")) or "unknown"),
            *(_shown(table(each.get("models")).get(name)) for name in names),
            _shown(each.get("rows")),
        ]
        for each in sets
    ]
    return ["## What was measured", _grid(["rows of", "figure", *map(prose, names), "rows"], rows)]


def _listed(said: Loose, key: str) -> list[object]:
    found = said.get(key)
    return found if isinstance(found, list) else []


def _shown(value: object) -> str:
    found = number(value)
    return "-" if found is None else f"{found:.{DIGITS}g}"


def _grid(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
