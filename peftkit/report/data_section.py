"""The report's section about the rows: one function a table, each from what `data.json` holds.

A new check gets its table by one more function in `SHORT` or `BY_ROW`. What an older run did not
write down has no rows, and a table without rows is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.report import charts, tables, wording
from peftkit.report.story import Bar, Comparison
from peftkit.report.tables import LISTED, Table
from peftkit.report.tolerant import Loose, flat, label, number, rows, table, text, whole
from peftkit.report.wording import NOTHING, count, share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peftkit.report.facts import Run

SETS = ("train", "validation", "test")
TOLD_OF_TOKENS = (
    ("stops_trained", "Answers learned up to their stop"),
    ("cut_tokens", "Tokens cut off"),
    ("cut_answers", "Answers that lost their end"),
    ("control_as_text", "Control tokens read as text"),
)
"""Counts of `data.json` that are shown where one is not 0."""
SHOWN_CLASSES = 12
SHOWN_LANGUAGES = 6
LONGEST_CELL = 300
FOLDED = ("Skipped rows", "Rows in two splits")
"""Of the tables about splits, those that go row by row."""
LANGUAGES = {
    "ar": "Arabic",
    "bg": "Bulgarian",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "vi": "Vietnamese",
    "zh": "Chinese",
    "unknown": "unclear",
}
"""Names of the commonest; any other is shown by its code."""


def summary(run: Run) -> list[Table]:
    """What the rows are like, in short tables."""
    known = [made for made in tables.data(run) if made.title not in FOLDED]
    own = [make(run.data) for make in SHORT]
    return [*known, *(made for made in own if made.rows)]


def row_by_row(run: Run) -> list[Table]:
    """Every row that something is wrong with, as long as the page has room."""
    known = [made for made in tables.data(run) if made.title in FOLDED]
    own = [make(run.data) for make in BY_ROW]
    return [*known, *(made for made in own if made.rows)]


def class_bars(run: Run) -> Comparison | None:
    """The training rows of each class, as bars; none where rows have no classes."""
    counts = _counts(run.data, "train")
    if not counts:
        return None
    kept = sorted(counts, key=lambda name: -counts[name])[:SHOWN_CLASSES]
    total = max(sum(counts.values()), 1)
    ends = charts.bar_ends([float(counts[name]) for name in kept])
    bars = tuple(
        Bar(
            name=name,
            value=share(counts[name] / total),
            reach="",
            drawing=charts.bar(float(counts[name]), None, ends, ours=True),
            ours=False,
        )
        for name in kept
    )
    what = label(table(run.data.get("balance")).get("of")) or "rows"
    left = len(counts) - len(kept)
    note = f"The largest {len(kept)} of {len(counts)}." if left else ""
    return Comparison(f"Training {what} of each class", note, bars)


def _counts(data: Loose, name: str) -> dict[str, int]:
    balance = table(data.get("balance"))
    counts = table(table(balance.get(name)).get("counts"))
    return {label(key): whole(value) or 0 for key, value in counts.items()}


def _classes(data: Loose) -> Table:
    """How often each class comes in each set."""
    counts = {name: _counts(data, name) for name in SETS}
    known = [name for name in SETS if counts[name]]
    ranked = sorted(counts["train"], key=lambda each: -counts["train"][each])
    lines = [(each, *(count(counts[name].get(each)) for name in known)) for each in ranked]
    return _listed("Classes", ("Class", *map(wording.sentence_case, known)), lines)


def _words(data: Loose) -> Table:
    """Languages, scripts and emoji of each set, as shares of its rows."""
    words = table(data.get("languages"))
    known = [name for name in SETS if table(words.get(name))]
    found = {name: table(words.get(name)) for name in known}
    lines = []
    for kind, most in (("languages", SHOWN_LANGUAGES), ("scripts", 3)):
        each = {name: table(found[name].get(kind)) for name in known}
        named = sorted(
            {code for shares in each.values() for code in shares},
            key=lambda code: (-max(number(each[name].get(code)) or 0 for name in known), code),
        )
        if kind == "scripts" and len(named) < 2:
            continue
        lines += [
            (_language(code), *(share(number(each[name].get(code)) or 0) for name in known))
            for code in named[:most]
        ]
    if lines:
        lines.append(("With an emoji", *(share(number(found[n].get("emoji"))) for n in known)))
    columns = ("Language or script", *map(wording.sentence_case, known))
    return Table("Languages", columns, tuple(lines))


def _language(code: str) -> str:
    return wording.sentence_case(LANGUAGES.get(code, code))


def _filters(data: Loose) -> Table:
    """What filters left out, and what those that are off would have."""
    filters = table(data.get("filters"))
    lines = []
    for key, fate in (("left_out", "left out"), ("counted", "would be left out")):
        verdict = table(filters.get(key))
        limits = table(verdict.get("limits"))
        looked_at = count(number(verdict.get("rows")))
        lines += [
            (
                name.replace("_", " "),
                _limit(limits.get(name)),
                count(number(found)),
                looked_at,
                fate,
            )
            for name, found in table(verdict.get("found")).items()
        ]
    columns = ("Filter", "Limit", "Rows", "Of", "")
    return Table("Filters", columns, tuple(lines))


def _limit(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(label(each) for each in value)
    return wording.figure(number(value))


def _tokens(data: Loose) -> Table:
    """Who says the tokens that are learned, and what a cut took."""
    known = [name for name in SETS if "trained_by_role" in table(data.get(name))]
    found = [table(data.get(name)) for name in known]
    spoken = [table(each.get("trained_by_role")) for each in found]
    roles = sorted({role for each in spoken for role in each})
    lines = [
        (
            f"Learned, said by {label(role)}",
            *(count(number(each.get(role)) or 0) for each in spoken),
        )
        for role in roles
    ]
    lines += [
        (said, *(count(number(each.get(key))) for each in found))
        for key, said in TOLD_OF_TOKENS
        if any(number(each.get(key)) for each in found)
    ]
    return Table("Tokens", ("", *known), tuple(lines))


def _reading(data: Loose) -> Table:
    """What the base's tokenizer makes of the rows, beside what it makes of its own kind of text."""
    fit = table(data.get("preprocessing"))
    reference = table(fit.get("reference"))
    if not reference:
        return Table("How the tokenizer reads them", (), ())
    named = "To be remembered" if label(reference.get("of")) == "remember" else "Plain English"
    lines = [
        (said, show(number(fit.get(key))), show(number(reference.get(key))))
        for key, said, show in (
            ("bytes_per_token", "Bytes a token", _short),
            ("tokens_per_word", "Tokens a word", _short),
            ("unknown", "Unknown tokens", share),
            ("byte_tokens", "Single bytes", share),
        )
    ]
    return Table("How the tokenizer reads them", ("", "These rows", named), tuple(lines))


def _short(value: float | None) -> str:
    return wording.figure(value, 3)


def _checks(data: Loose) -> Table:
    """Counts of what was looked for among the training rows."""
    duplicates, conflicts = table(data.get("duplicates")), table(data.get("label_conflicts"))
    noise = table(data.get("label_noise"))
    looked_at = whole(noise.get("rows"))
    checked = f"{count(looked_at)}" if looked_at else text(noise.get("why")) or NOTHING
    lines = (
        ("Rows that repeat an earlier one", count(number(duplicates.get("exact")))),
        ("Rows nearly like an earlier one", count(number(duplicates.get("near")))),
        ("Texts with two labels or answers", count(number(conflicts.get("texts")))),
        ("Labels looked at", checked if noise and data.get("balance") else NOTHING),
        ("Labels as a probe would say", share(number(noise.get("agreement")))),
        ("Labels a probe is sure are wrong", count(number(noise.get("sure")))),
    )
    return Table("Checks", (), tuple(line for line in lines if line[1] != NOTHING))


def _augmented(data: Loose) -> Table:
    """What was changed in copies; nothing where none were asked for."""
    made = table(table(data.get("train")).get("augmented"))
    if not any(number(made.get(key)) for key in ("rows", "unchanged", "left_out")):
        return Table("Augmentation", (), ())
    leaves = flat(made)
    lines = [(key.replace("_", " ").replace(".", ": "), value) for key, value in leaves.items()]
    return _listed("Augmentation", ("", ""), lines)


def _filtered_rows(data: Loose) -> Table:
    filters = table(data.get("filters"))
    lines = [
        (label(row.get("where")), label(row.get("filter")), _figure(row.get("figure")), fate)
        for key, fate in (("left_out", "left out"), ("counted", "kept"))
        for row in rows(table(filters.get(key)).get("listed"))
    ]
    return _listed("Rows that filters are against", ("Where", "Filter", "Figure", ""), lines)


def _figure(value: object) -> str:
    found = number(value)
    return label(value) if found is None else wording.figure(found)


def _suspected(data: Loose) -> Table:
    lines = [
        (
            label(row.get("where")),
            label(row.get("given")),
            label(row.get("suspected")),
            _short(number(row.get("confidence"))),
        )
        for row in rows(table(data.get("label_noise")).get("listed"))
    ]
    columns = ("Where", "Label", "Probably", "How much likelier")
    return _listed("Labels that are probably wrong", columns, lines)


def _repeated(data: Loose) -> Table:
    lines = [
        (label(row.get("where")), count(number(row.get("rows"))), text(row.get("text")) or "")
        for row in rows(table(data.get("duplicates")).get("most"))
    ]
    return _listed("Most repeated training rows", ("First row", "Times", "Text"), lines)


def _conflicts(data: Loose) -> Table:
    lines = []
    for row in rows(table(data.get("label_conflicts")).get("pairs")):
        said = row.get("labels")
        both = " / ".join(label(each) for each in said) if isinstance(said, list) else ""
        places = (label(row.get("left")), label(row.get("right")))
        lines.append((*places, both, text(row.get("text")) or ""))
    return _listed("The same with two labels", ("Row", "Other row", "Labels", "Text"), lines)


def _listed(title: str, columns: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> Table:
    note = f"{LISTED} of {len(lines):,}; all are in `data.json`." if len(lines) > LISTED else ""
    kept = (tuple(wording.clipped(cell, LONGEST_CELL) for cell in line) for line in lines[:LISTED])
    return Table(title, columns, tuple(kept), note)


SHORT: tuple[Callable[[Loose], Table], ...] = (
    _classes,
    _tokens,
    _words,
    _reading,
    _filters,
    _checks,
    _augmented,
)
BY_ROW: tuple[Callable[[Loose], Table], ...] = (
    _suspected,
    _conflicts,
    _repeated,
    _filtered_rows,
)
