"""Evaluation rows that are also training rows: the same text, or nearly."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.data.example import words_of
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from peftkit.data.example import Example

SHINGLE = 5
"""Words that overlap as one unit."""
NEAR = 0.8
"""Jaccard similarity of two rows' shingles from which they count as nearly the same."""
SHOWN = 50


@dataclass(frozen=True, slots=True)
class Pair:
    """An evaluation row and the training row it repeats."""

    kind: str
    similarity: float
    left: str
    right: str
    text: str
    digest: str


def find_leaks(train: Sequence[Example], held: Sequence[Example]) -> list[Pair]:
    """One pair for each held-out row that repeats a training row, the closest one."""
    exact = {example.key: example for example in reversed(train)}
    index, sizes = _index(train)
    pairs = []
    for example in held:
        if (same := exact.get(example.key)) is not None:
            pairs.append(_pair("exact", 1.0, same, example))
        elif (near := _nearest(example, index, sizes)) is not None:
            pairs.append(_pair("near", near[1], train[near[0]], example))
    return pairs


def settle_leaks(
    policy: str, train: Sequence[Example], held: Mapping[str, Sequence[Example]]
) -> tuple[dict[str, list[Example]], dict[str, Any]]:
    """The held-out sets the policy leaves, and what `data.json` says of leakage."""
    kept = {name: list(examples) for name, examples in held.items()}
    if policy == "off":
        return kept, {"exact": None, "near": None, "pairs": [], "policy": policy}
    pairs = {name: find_leaks(train, examples) for name, examples in held.items()}
    exact = [pair for found in pairs.values() for pair in found if pair.kind == "exact"]
    if exact and policy == "error":
        raise InputError(
            f"{len(exact)} held-out {'row is' if len(exact) == 1 else 'rows are'} also trained on",
            problems=[f"{p.right} repeats {p.left}: `{_short(p.text, 50)}`" for p in exact[:9]],
            hint="`data.leakage: remove` leaves them out of the evaluation; "
            "`warn` keeps them and says so in the report",
        )
    if policy == "remove":
        gone = {name: {pair.digest for pair in found} for name, found in pairs.items()}
        kept = {
            name: [e for e in examples if e.digest not in gone[name]]
            for name, examples in held.items()
        }
    every = [pair for found in pairs.values() for pair in found]
    shown = [
        {"kind": p.kind, "similarity": p.similarity, "left": p.left, "right": p.right}
        | {"text": _short(p.text, 200)}
        for p in every[:SHOWN]
    ]
    near = len(every) - len(exact)
    return kept, {"exact": len(exact), "near": near, "pairs": shown, "policy": policy}


def _shingles(text: str) -> set[str]:
    words = words_of(text) or [text]
    last = max(len(words) - SHINGLE, 0)
    return {" ".join(words[start : start + SHINGLE]) for start in range(last + 1)}


def _index(train: Sequence[Example]) -> tuple[dict[str, list[int]], list[int]]:
    index: dict[str, list[int]] = defaultdict(list)
    sizes = []
    for number, example in enumerate(train):
        shingles = _shingles(example.text)
        sizes.append(len(shingles))
        for shingle in sorted(shingles):
            index[shingle].append(number)
    return index, sizes


def _nearest(
    example: Example, index: Mapping[str, list[int]], sizes: Sequence[int]
) -> tuple[int, float] | None:
    """The training row of highest Jaccard similarity, if that is at least `NEAR`."""
    own = _shingles(example.text)
    shared = Counter(_hits(own, index))
    found = [(count / (len(own) + sizes[row] - count), -row) for row, count in shared.items()]
    similarity, row = max(found, default=(0.0, 0))
    return (-row, similarity) if similarity >= NEAR else None


def _hits(shingles: set[str], index: Mapping[str, list[int]]) -> Iterator[int]:
    for shingle in shingles:
        yield from index.get(shingle, ())


def _pair(kind: str, similarity: float, left: Example, right: Example) -> Pair:
    return Pair(kind, round(similarity, 4), left.where, right.where, right.text, right.digest)


def _short(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
