"""Examples that say what a test wants, and lists of words of which some are nearly the same."""

import numpy as np
from hypothesis import strategies as some

from peftkit.data.example import Example
from peftkit.data.hashed import Hashed, hash_rows

PAIR = (np.zeros(2, np.int32), np.array([False, True]))


def hashed(name: str, *texts: str) -> Hashed:
    """Rows of a file that is called `name`."""
    return hash_rows(
        [
            Example(*PAIR, f"{name}:{number}", f"{name}{number}", text)
            for number, text in enumerate(texts, start=1)
        ]
    )


def labeled(name: str, *rows: tuple[str, str]) -> Hashed:
    """The same with a label each."""
    return hash_rows(
        [
            Example(
                *PAIR,
                f"{name}:{number}",
                f"{name}{number}",
                text,
                prompt=text,
                answer=label,
                labels=(label,),
            )
            for number, (text, label) in enumerate(rows, start=1)
        ]
    )


def where(rows: Hashed) -> list[str]:
    return [example.where for example in rows.examples]


def shingles(words: list[str], size: int = 5) -> set[tuple[str, ...]]:
    starts = range(max(len(words) - size, 0) + 1)
    return {tuple(words[start : start + size]) for start in starts}


def jaccard(one: list[str], other: list[str]) -> float:
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


@some.composite
def train_and_held(draw: some.DrawFn) -> tuple[list[list[str]], list[list[str]]]:
    """Word lists; the held-out ones are training ones with a few words changed, or new."""
    words = some.sampled_from("abcdefgh")
    train = draw(some.lists(some.lists(words, min_size=1, max_size=40), min_size=1, max_size=6))
    train += draw(some.lists(some.sampled_from(train), max_size=3))
    held = []
    for _ in range(draw(some.integers(1, 5))):
        row = list(draw(some.sampled_from(train)))
        for _ in range(draw(some.integers(0, 2))):
            row[draw(some.sampled_from([0, -1, draw(some.integers(0, len(row) - 1))]))] = draw(
                words
            )
        held.append(row + draw(some.lists(words, max_size=3)))
    return train, held
