"""A loaded base, and rows to judge merges on it by, which become tokens once for all of them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from peftkit.adapters.expected import TOKEN_ROWS
from peftkit.adapters.head import put_on_head
from peftkit.adapters.task_file import PLAIN
from peftkit.adapters.tokens import added_tokens
from peftkit.base.load import Base, load_base, stop_ids
from peftkit.base.machine import choose_device
from peftkit.data.origin import name_sources
from peftkit.data.prepare import read_set
from peftkit.errors import InputError
from peftkit.evaluate.evaluation import Evaluation, evaluate_set
from peftkit.evaluate.holdout import divide
from peftkit.evaluate.losses import choose_rows
from peftkit.merge.live import acting
from peftkit.pipeline.setup import make_encoder, task_of
from peftkit.recipe.sections.base import BaseSection
from peftkit.recipe.sections.data import DataSection
from peftkit.recipe.sections.evaluate import EvaluateSection

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from peftkit.data.example import Example
    from peftkit.data.task import Task
    from peftkit.merge.delta import Delta
    from peftkit.merge.live import Dials
    from peftkit.recipe.sections.data import SourceSection

LONGEST = 1024
"""Tokens of a row, where the base was made for more."""
USUAL = EvaluateSection()
LOSS_ALONE = EvaluateSection(metrics=("loss",), rows=2**62)
"""How every row is measured while numbers are searched: nothing is written for it."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A named set of rows."""

    name: str
    role: Literal["task", "control"]
    sources: tuple[str, ...]
    examples: Sequence[Example]
    """To judge by."""
    searched: Sequence[Example] = ()
    """Those that a search of numbers sees, of which none is judged by."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A base and the sets that models made of it are compared on."""

    base: Base
    section: BaseSection
    task: Task
    stops: frozenset[int]
    sets: tuple[Rows, ...]
    how: EvaluateSection

    def named(self, name: str) -> Rows:
        """The set of this name."""
        return next(rows for rows in self.sets if rows.name == name)

    def divided(self, names: Collection[str], share: float) -> Bench:
        """The same, with rows of these sets to search on and a `share` of them held back.

        Raises:
            InputError: a set has too few rows.
        """
        parted = {
            rows.name: divide(rows.examples, share, rows.name)
            for rows in self.sets
            if rows.name in names
        }
        sets = [
            replace(rows, searched=parted[rows.name][0], examples=parted[rows.name][1])
            if rows.name in parted
            else rows
            for rows in self.sets
        ]
        return replace(self, sets=tuple(sets))

    def measure(self, examples: Sequence[Example], *, answers: bool) -> Evaluation:
        """What the model as it stands does on some rows.

        Args:
            examples: all of which count.
            answers: whether answers are written and compared where rows have short ones.
        """
        return evaluate_set(
            self.base.model,
            examples,
            self.base.tokenizer,
            self.how if answers else LOSS_ALONE,
            pad_id=self.base.pad_id,
            stops=self.stops,
            task=self.task,
        )

    @contextmanager
    def acting(self, terms: Mapping[str, Delta]) -> Iterator[Dials]:
        """Inside, these act on the base times numbers; see `peftkit.merge.live.acting`."""
        with acting(self.base.model, terms) as dials:
            yield dials


def open_bench(
    model: str,
    terms: Sequence[Delta],
    tasks: Mapping[str, Sequence[SourceSection]],
    control: Sequence[SourceSection] = (),
    *,
    how: EvaluateSection = USUAL,
) -> Bench:
    """Load the base of some changes, and the rows of every set.

    Args:
        model: the base.
        terms: the changes; they say the task of the base, and which tokens it gets.
        tasks: sources by the name of their set.
        control: sources of what must stay as it is; a set called `control`.
        how: how many rows, and which metrics.

    Raises:
        InputError: rows cannot be used, or the base is damaged.
        RecipeError: there is no such base.
    """
    section = _section(model, terms)
    base = load_base(section, device=choose_device())
    if head := does(terms)["head"]:
        put_on_head(base.model, head["hidden"], head["dropout"])
    stops = stop_ids(base.origin, base.tokenizer, section.stop_tokens)
    told = {"train": "-", "max_length": min(base.window or LONGEST, LONGEST)}
    data = DataSection.model_validate(told | {"too_long": "truncate"})
    encoder = make_encoder(section, data, base.tokenizer, stops)
    wanted: list[tuple[str, Literal["task", "control"], Sequence[SourceSection]]] = [
        (name, "task", sources) for name, sources in tasks.items()
    ]
    wanted += [("control", "control", control)] if control else []
    sets = []
    for name, role, sources in wanted:
        found = read_set(name, sources, data.bad_rows, encoder)
        if not found.examples:
            raise InputError(f"evaluate: the set `{name}` has no usable row")
        places = tuple(name_sources(sources))
        sets.append(Rows(name, role, places, choose_rows(found.examples, how.rows)))
    task = task_of(section, base.origin, base.tokenizer)
    return Bench(base, section, task, stops, tuple(sets), how)


def does(terms: Sequence[Delta]) -> dict[str, Any]:
    """The task, the labels and the head that the changes were trained for; text without any."""
    said = [{"labels": [], "head": None} | (t.facts.get("task") or PLAIN) for t in terms]
    return next((each for each in said if each["task"] != PLAIN["task"]), PLAIN)


def _section(model: str, terms: Sequence[Delta]) -> BaseSection:
    """The base as the changes want it: its task, its new tokens, and digits enough for them."""
    wanted, whole = does(terms), any(term.dense for term in terms)
    section = BaseSection(
        model=model,
        revision=next((r for t in terms if (r := t.facts.get("revision"))), "main"),
        dtype="float32" if whole else "auto",  # what changes as a whole is added digit for digit
        task=wanted["task"],
        labels=tuple(wanted["labels"]) or "auto",
    )
    rows = [t for t in terms if any(name.endswith(TOKEN_ROWS) for name in t.kept)]
    if not rows:
        return section
    tokens = added_tokens(rows[0].facts["folder"], section)
    return section.model_copy(update={"add_tokens": tokens})
