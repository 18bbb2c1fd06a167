"""Hold rows out by their content, so that added rows leave the old ones where they were.

What a row's side depends on, besides the fraction:

- `random`: its own text. One row is put on the other side where a side would be empty.
- `stratified`: its rank, by a hash of the text, among the different texts of its class. Adding n
  texts to a class moves at most n of its old ones, all in one direction, and none of others.
- `group`: its group, and those that copies of a text tie to it. Added rows move a group only by
  tying it to another.
- `time`: whether the first row that says the same is among the latest. Added rows move the line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from peftkit.data.columns import instant_of
from peftkit.data.hashed import answer_of, hash_text
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from peftkit.data.hashed import Hashed, Hashes
    from peftkit.recipe.sections.split import SplitSection

    Marks = NDArray[np.bool_]

SHOWN = 20


def columns_of(splits: Mapping[str, SplitSection]) -> tuple[str, ...]:
    """Columns whose values every training row must keep for these splits."""
    return tuple(dict.fromkeys(split.column for split in splits.values() if split.column))


def hold_out(rows: Hashed, splits: Mapping[str, SplitSection]) -> tuple[Hashed, dict[str, Hashed]]:
    """What is left to train on, and the rows of each split, one split after the other.

    Copies of a row land on the same side.

    Raises:
        InputError: nothing can be held out, or a column cannot be read as a time.
    """
    columns = columns_of(splits)
    held = {}
    for salt, (name, split) in enumerate(splits.items()):
        marks = mark_held(rows, split, columns, salt)
        if len(rows) and not marks.any():
            raise _refusal(name, split)
        held[name] = rows.pick(np.flatnonzero(marks))
        rows = rows.pick(np.flatnonzero(~marks))
    return rows, held


def mark_held(rows: Hashed, split: SplitSection, columns: Sequence[str], salt: int = 0) -> Marks:
    """Which rows are held out; none where they cannot be told apart."""
    at = columns.index(split.column) if split.column else 0
    match split.kind:
        case "stratified":
            return _by_class(rows, split.fraction, salt)
        case "group":
            found = (hash_text(example.columns[at]) for example in rows.examples)
            groups = np.fromiter(found, np.uint64, len(rows))
            return _by_group(rows.keys, groups, split.fraction, salt)
        case "time":
            return _by_time(rows.keys, _instants(rows, at, split.column), split.fraction)
        case _:
            return _by_place(rows.keys, split.fraction, salt)


def _by_place(keys: Hashes, fraction: float, salt: int) -> Marks:
    """Whatever falls below the fraction; of several, at least one on each side."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    places = _places(distinct, salt)
    held = places < fraction
    if len(distinct) and not held.any():
        held[places.argmin()] = True
    if len(distinct) and held.all():
        held[places.argmax()] = False
    marks: Marks = held[inverse]
    return marks


def _by_class(rows: Hashed, fraction: float, salt: int) -> Marks:
    """The first texts of each class by their hashes; a text with two labels is of one of them."""
    # An answer may be long, so it counts by its hash here; 0 stands for none.
    answers = map(answer_of, rows.examples)
    found = (hash_text(answer) if answer else 0 for answer in answers)
    names, classes = np.unique(np.fromiter(found, np.uint64, len(rows)), return_inverse=True)
    if len(rows) and not names[-1]:
        raise InputError(
            "data: rows without labels or answers cannot be held out by class",
            hint="`by: random`, or `by: group:<column>`",
        )
    distinct, inverse = np.unique(rows.keys, return_inverse=True)
    own = np.full(len(distinct), len(names))
    np.minimum.at(own, inverse, classes)
    order = np.lexsort((distinct, _places(distinct, salt), own))
    sizes = np.bincount(own, minlength=len(names))
    ranks = np.empty(len(distinct), np.int64)
    ranks[order] = np.arange(len(distinct)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    quota = np.minimum(np.maximum(np.rint(fraction * sizes), 1), sizes - 1)
    marks: Marks = (ranks < quota[own])[inverse]
    return marks


def _by_group(keys: Hashes, groups: Hashes, fraction: float, salt: int) -> Marks:
    """Whole groups; those that share a text are one, known by the least hash among them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, group = np.unique(groups, return_inverse=True)
    texts, text = np.unique(keys, return_inverse=True)
    size = len(names) + len(texts)
    ties = coo_array((np.ones(len(keys)), (group, len(names) + text)), shape=(size, size))
    _, parts = connected_components(ties, directed=False)
    least = np.full(size, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, parts[: len(names)], names)
    return _by_place(least[parts[group]], fraction, salt + 2)


def _by_time(keys: Hashes, instants: NDArray[np.float64], fraction: float) -> Marks:
    """The latest rows, at most the fraction of all or else those of the last instant."""
    _, inverse = np.unique(keys, return_inverse=True)
    first = np.full(len(keys), np.inf)
    np.minimum.at(first, inverse, instants)
    own = first[inverse]
    times, counts = np.unique(own, return_counts=True)
    if len(times) < 2:
        return np.zeros(len(keys), np.bool_)
    later = np.cumsum(counts[::-1])[::-1]
    fitting = times[later <= fraction * len(keys)]
    marks: Marks = own >= (fitting[0] if len(fitting) else times[-1])
    return marks


def _instants(rows: Hashed, at: int, column: str) -> NDArray[np.float64]:
    """When each row is of, as numbers to sort by."""
    found = np.empty(len(rows), np.float64)
    first: dict[str, str] = {}
    bad = []
    for place, example in enumerate(rows.examples):
        instant = instant_of(example.columns[at])
        if instant is None:
            bad.append(f"{example.where}: `{example.columns[at][:40]}`")
            continue
        first.setdefault(instant[0], f"{example.where}: `{example.columns[at][:40]}`")
        found[place] = instant[1]
    if bad or len(first) > 1:
        raise InputError(
            f"column `{column}`: expected numbers or ISO dates to hold rows out by time, "
            + (f"{len(bad)} rows have neither" if bad else "got both"),
            problems=bad[:SHOWN] or list(first.values()),
            hint="write all as numbers, or all as dates such as `2026-01-31`",
        )
    return found


def _places(hashes: Hashes, salt: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each hash; another one under another salt."""
    for _ in range(salt):
        hashes = _mixed(hashes)
    return (hashes >> np.uint64(16)) / float(1 << 48)


def _mixed(hashes: Hashes) -> Hashes:
    """Each number as another one, each of whose bits depends on all: splitmix64's last step."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def _refusal(name: str, split: SplitSection) -> InputError:
    why = {
        "random": "all training rows say the same",
        "stratified": "no class has two different rows",
        "group": f"all rows are of one `{split.column}`, or copies of a text tie all together",
        "time": f"all rows are of the same `{split.column}`, or say the same",
    }[split.kind]
    hints = {"group": "; `data.duplicates: remove` leaves copies out before rows are held out"}
    return InputError(
        f"no row can be held out for {name}: {why}",
        hint=f"add rows, or name a source under `data.{name}`{hints.get(split.kind, '')}",
    )
