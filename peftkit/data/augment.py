"""Changed copies of training rows: noise in what the model reads, templates for small classes.

Copies are made once the held-out rows are out and leaks are settled, from the rows of the training
side alone: their files are read again, so nothing has to be kept of sets that have no copies. What
a copy says follows from its row's own content, so added rows change no other copy. Answers, labels
and text that is learned whole stay as they are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.formats import build_examples, detect_format
from peftkit.data.noise import add_noise, change_words
from peftkit.data.rows import Intake, Row
from peftkit.data.sources import find_files, read_rows
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.augment import PLACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from peftkit.data.draft import Encoder
    from peftkit.data.example import Example
    from peftkit.recipe.sections.augment import AugmentSection
    from peftkit.recipe.sections.data import DataSection, SourceSection

LARGEST = 200_000
"""Copies that are held in memory; more rows than that need none."""
TRIES = 16
"""Draws for a copy until something has changed, for texts of few words."""
NAMES = {
    "drop": "words left out",
    "typos": "typos",
    "case": "in other case",
    "spacing": "gaps changed",
    "emoji": "emoji rewritten",
}
"""What happened to a text, for people."""
TEXTS = {
    "completion": ("prompt",),
    "instruction": ("instruction", "input"),
    "classification": ("text", "text_pair"),
    "similar": ("anchor",),
}
"""Columns that are read and not learned, by format."""
Key = tuple[str, str, str]
"""A row's source, where it stands and its digest: files of one name may be in several folders."""


@dataclass(frozen=True, slots=True)
class Augmented:
    """Changed copies, and what was changed in them."""

    examples: Sequence[Example] = ()
    changes: Mapping[Key, str] = field(default_factory=dict)
    """For people, by which copy it is."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Of each kind of change."""
    unchanged: int = 0
    """Copies in which nothing could be changed; they are not made."""
    left_out: int = 0
    """Copies that could not be used, such as those that became too long."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `data.json` says."""
        return {
            "rows": len(self.examples),
            "changes": dict(self.counts),
            "unchanged": self.unchanged,
            "left_out": self.left_out,
        }


@dataclass(frozen=True, slots=True)
class Original:
    """A training row as it was read, and what it was read as."""

    row: Row
    source: str
    format: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """A row with some of its texts changed, and what was done to them."""

    row: Row
    of: Original
    done: Counter[str]
    said: str


def augment(
    section: DataSection,
    examples: Sequence[Example],
    names: Sequence[str],
    encoder: Encoder,
    seed: int,
) -> Augmented:
    """The copies that `data.augment` asks for of the rows in `examples`.

    Raises:
        InputError: there are too many rows, or nothing in them may be changed.
        RecipeError: templates are to fill classes, and the task has none.
    """
    wanted = section.augment
    if not wanted.copies and not wanted.templates:
        return Augmented()
    _refuse(wanted, encoder, len(examples))
    labels = {key_of(each): each.labels for each in examples}
    originals = [
        each
        for source, name in zip(section.train, names, strict=True)
        for each in _read_again(source, name, encoder, labels)
    ]
    copies = [*_noisy(originals, wanted, seed), *_framed(originals, wanted, seed)]
    kept = [copy for copy in copies if copy.done]
    intake = Intake("skip")
    encoders = {
        name: encoder.for_source(source) for source, name in zip(section.train, names, strict=True)
    }
    made = [example for copy in kept for example in _build(copy, encoders[copy.of.source], intake)]
    if not made:
        raise InputError(
            "data.augment: no training row has anything that may be changed",
            hint="what is learned stays as it is; prompts, user turns and texts with a label "
            "can have copies",
        )
    return Augmented(
        made,
        {(copy.of.source, copy.row.where, copy.row.digest): copy.said for copy in kept},
        sum((copy.done for copy in kept), Counter()),
        len(copies) - len(kept),
        len(intake.found) + len(intake.dropped),
    )


def key_of(example: Example) -> Key:
    """What tells an example from the others."""
    return example.source, example.where, example.digest


def _refuse(wanted: AugmentSection, encoder: Encoder, rows: int) -> None:
    if rows * max(wanted.copies, 1) > LARGEST:
        raise InputError(
            f"data.augment: {wanted.copies} copies of {rows:,} rows are more than {LARGEST:,}",
            hint="so many rows need no copies: `--set data.augment.copies=0`",
        )
    if wanted.templates and encoder.task != "classification":
        raise RecipeError(
            f"data.augment.templates: they fill up small classes, and a {encoder.task} base has "
            "none",
            hint="`base.task: classification` has; `data.augment.copies` is for every task",
        )


def _read_again(
    source: SourceSection, name: str, encoder: Encoder, labels: Mapping[Key, tuple[str, ...]]
) -> Iterator[Original]:
    """The rows of a source that are trained on, as they were read."""
    files = find_files(source, encoder.reading.commits)
    for row in read_rows(source, Intake("skip"), files):
        kind = detect_format(row, encoder.task) if source.format == "auto" else source.format
        key = (name, row.where, row.digest)
        if kind is not None and key in labels:
            yield Original(row, name, kind, labels[key])


def _build(copy: Copy, encoder: Encoder, intake: Intake) -> Iterator[Example]:
    return build_examples([copy.row], copy.of.format, copy.of.source, encoder, intake)


def _noisy(originals: Sequence[Original], wanted: AugmentSection, seed: int) -> Iterator[Copy]:
    for original in originals:
        for number in range(1, wanted.copies + 1):
            random = np.random.default_rng([seed, number, int(original.row.digest[:16], 16)])
            values, done = _try_to_change(original, wanted, random)
            said = ", ".join(f"{NAMES[name]}: {count}" for name, count in done.items())
            yield Copy(Row(values, f"{original.row.where}~{number}"), original, done, said)


def _try_to_change(
    original: Original, wanted: AugmentSection, random: np.random.Generator
) -> tuple[dict[str, Any], Counter[str]]:
    """Columns with something changed, and what; with nothing, where chance never hits a word."""
    for _ in range(TRIES):
        done: Counter[str] = Counter()
        values = change_values(original.row.values, original.format, wanted, random, done)
        if any(done.values()):
            break
    return values, Counter({name: done[name] for name in NAMES if done[name]})


def _framed(originals: Sequence[Original], wanted: AugmentSection, seed: int) -> Iterator[Copy]:
    """Rows of small classes inside templates, each pair once, until a class has its fill."""
    if not wanted.templates:
        return
    classes: dict[str, list[Original]] = {}
    for original in originals:
        classes.setdefault(original.labels[0], []).append(original)
    largest = max(map(len, classes.values()), default=0)
    fill = largest if wanted.fill == "largest" else wanted.fill
    for own in classes.values():
        pairs = [(each, number) for each in own for number in range(len(wanted.templates))]
        pairs.sort(key=lambda pair: _draw(seed, pair[0].row.digest, pair[1]))
        for original, number in pairs[: max(fill - len(own), 0)]:
            template = wanted.templates[number]
            text = template.replace(PLACE, str(original.row.values["text"]))
            where = f"{original.row.where}~{wanted.copies + number + 1}"
            row = Row({**original.row.values, "text": text}, where)
            yield Copy(row, original, Counter({"templates": 1}), f"in `{template}`")


def _draw(seed: int, digest: str, number: int) -> bytes:
    """Where a pair of a row and a template stands in line; its own content alone decides."""
    return hashlib.sha256(f"{seed} {digest} {number}".encode()).digest()


def change_values(
    values: Mapping[str, Any],
    kind: str,
    wanted: AugmentSection,
    random: np.random.Generator,
    done: Counter[str],
) -> dict[str, Any]:
    """A row's columns, with noise in what the model is given to read and in nothing else."""

    def vary(text: Any) -> Any:
        return add_noise(text, wanted, random, done) if isinstance(text, str) else text

    changed = {name: vary(values[name]) for name in TEXTS.get(kind, ()) if name in values}
    if kind == "chat":
        changed["messages"] = [
            {**turn, "content": vary(turn.get("content"))} if turn.get("role") == "user" else turn
            for turn in values["messages"]
        ]
    if kind == "tokens":  # each word has a tag, so none may go
        parts = [str(part) for part in values["tokens"]]
        changed["tokens"] = change_words(parts, wanted, random, done)
    return {**values, **changed}
