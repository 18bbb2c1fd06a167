"""Rows that a recipe leaves out for what they say: too short, repeating, refusing, markup, spam.

A row that fails several filters counts for the first of them.
Limits of repetition are those of Gopher's corpus (Rae et al., 2021, table A1).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.languages import UNKNOWN, language_of
from peftkit.data.quality import spread
from peftkit.data.task import WRITES
from peftkit.data.views import Picked
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peftkit.data.example import Example
    from peftkit.recipe.sections.filters import FiltersSection

LIMITS: dict[str, float] = {
    "shortest": 3,  # characters: `OK` says nothing of how to answer, `Yes` may be all there is
    "longest": 20_000,  # characters: some 5,000 tokens, more than instruction data is cut to
    "repeated_words": 0.2,
    "repeated_lines": 0.3,
    "refusals": 0,
    "links": 0.5,  # mostly addresses
    "markup": 0.1,  # one character in ten: a stray `<br>` is left alone
}
"""What `auto` means, and what the rows are counted by where a filter is off."""
LISTED = 50
"""Rows named in `data.json`."""
FEWEST_WORDS, FEWEST_LINES = 50, 4
"""In a shorter text, repeating a little is a large share; Gopher has no text under 50 words."""
REFUSAL = re.compile(
    r"\bas an? (ai|artificial intelligence)( language)?( model| assistant|,)"
    r"|\bas a large language model\b"
    r"|\bi('m| am) (just |only )?an? (ai|large language model|language model)\b"
    r"|\bi('m| am) (sorry|afraid),? (but )?i('m| am)? ?(can't|cannot|can not|unable|not able)\b"
    r"|\bi (can't|cannot|can not|am unable to|am not able to) (assist|help|fulfill|comply|answer)\b"
)
LINK = re.compile(r"(?:https?://|www\.)\S+")
MARKUP = re.compile(
    r"</?[a-zA-Z][^<>]{0,200}>|&(?:[a-z]{2,8}|#\d{1,6});|\[/?(?:quote|url|img|edit)\b[^\]]{0,100}\]"
)


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that a filter is against, and by which figure."""

    where: str
    filter: str
    figure: float | str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many rows were judged, and those that failed."""

    rows: int
    failed: tuple[Failed, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """What `data.json` says."""
        counts = Counter(each.filter for each in self.failed)
        return {
            "rows": self.rows,
            "found": {name: counts[name] for name in (*LIMITS, "languages") if counts[name]},
            "listed": [
                {"where": each.where, "filter": each.filter, "figure": each.figure}
                for each in self.failed[:LISTED]
            ],
        }


def limits_of(section: FiltersSection) -> dict[str, Any]:
    """The limits that are on, in the order in which rows are held against them."""
    written = section.model_dump()
    on = {name: value for name, value in written.items() if value != "off"}
    return {name: LIMITS[name] if value in ("auto", "on") else value for name, value in on.items()}


def keep_good(
    section: FiltersSection, examples: Sequence[Example], task: str
) -> tuple[Sequence[Example], dict[str, Any]]:
    """The rows that pass the filters that are on, and what `data.json` says of the others.

    Raises:
        InputError: none is left.
    """
    limits = limits_of(section)
    if not limits:
        return examples, {}
    failed: list[Failed] = []
    kept: list[int] = []
    for number, example in enumerate(examples):
        found = judge(example, limits, task)
        if found is None:
            kept.append(number)
        else:
            failed.append(found)
    if failed and not kept:
        raise InputError(
            f"`data.filters` leave none of {len(failed)} training rows",
            problems=[f"{each.where}: {each.filter} ({each.figure})" for each in failed[:9]],
            hint="raise the limits, or turn one off: `--set data.filters.shortest=off`",
        )
    facts = Verdict(len(examples), tuple(failed)).facts | {"limits": limits}
    return Picked(examples, np.asarray(kept, np.int64)), facts


def count_bad(
    examples: Sequence[Example], task: str, limit: int, without: Mapping[str, Any]
) -> dict[str, Any]:
    """How many of some rows the filters that are off would have left out, with their own limits."""
    limits = {name: value for name, value in LIMITS.items() if name not in without}
    looked_at = spread(examples, limit)
    found = [judge(example, limits, task) for example in looked_at]
    failed = tuple(each for each in found if each is not None)
    return Verdict(len(looked_at), failed).facts | {"limits": limits}


def judge(example: Example, limits: Mapping[str, Any], task: str) -> Failed | None:
    """The first filter that a row fails; its answer is looked at where it has one to learn."""
    answers = task in WRITES and example.answer is not None
    said = example.answer or "" if answers else example.text
    asked = example.prompt if answers else ""
    for name, limit in limits.items():
        figure = FIGURES[name](said, asked)
        if FAILS.get(name, _above)(figure, limit):
            return Failed(example.where, name, figure)
    return None


def _above(figure: Any, limit: Any) -> bool:
    return bool(figure > limit)


def _below(figure: Any, limit: Any) -> bool:
    return bool(figure < limit)


def _is_other(figure: Any, limit: Any) -> bool:
    return figure != UNKNOWN and figure not in limit


FAILS: dict[str, Callable[[Any, Any], bool]] = {"shortest": _below, "languages": _is_other}
"""Where a larger figure is not the worse one."""


def _shorter(said: str, asked: str) -> int:
    own = len(said.strip())
    return min(own, len(asked.strip())) if asked.strip() else own


def _all_of_it(said: str, asked: str) -> int:
    return len(said) + len(asked)


def share_of_repeated_words(said: str, _: str = "") -> float:
    """Share of the letters that are in the commonest pair of words."""
    words = said.split()
    if len(words) < FEWEST_WORDS:
        return 0.0
    (pair, count), *_rest = Counter(pairwise(words)).most_common(1)
    letters = sum(map(len, words))
    return round(min(count * sum(map(len, pair)) / letters, 1.0), 4) if count > 1 else 0.0


def share_of_repeated_lines(said: str, _: str = "") -> float:
    """Share of the lines that stood there before; empty ones do not count."""
    if said.count("\n") < FEWEST_LINES - 1:
        return 0.0
    lines = [line.strip() for line in said.split("\n") if line.strip()]
    if len(lines) < FEWEST_LINES:
        return 0.0
    return round(1 - len(set(lines)) / len(lines), 4)


def _refusals(said: str, _: str) -> int:
    """Whether the opening speaks as an assistant that does not answer."""
    return int(REFUSAL.search(said[:400].lower().replace("\u2019", "'")) is not None)


def _share_within(pattern: re.Pattern[str], hint: str) -> Callable[[str, str], float]:
    def share(said: str, _: str) -> float:
        if not any(mark in said for mark in hint):
            return 0.0
        inside = sum(len(found) for found in pattern.findall(said))
        return round(inside / max(len(said.strip()), 1), 4)

    return share


def _language(said: str, asked: str) -> str:
    return language_of(f"{asked} {said}" if asked else said)


FIGURES: dict[str, Callable[[str, str], Any]] = {
    "shortest": _shorter,
    "longest": _all_of_it,
    "repeated_words": share_of_repeated_words,
    "repeated_lines": share_of_repeated_lines,
    "refusals": _refusals,
    "links": _share_within(LINK, ":/."),
    "markup": _share_within(MARKUP, "<&["),
    "languages": _language,
}
"""What each filter measures of what a row says and what it is asked."""
