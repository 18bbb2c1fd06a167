"""Which source each row came from, under names that no two sources of a set share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from peftkit.data.views import names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example
    from peftkit.recipe.sections.data import SourceSection


def name_sources(sources: Sequence[SourceSection]) -> list[str]:
    """The file's name of each; with its folder where several bear it, numbered if that is equal."""
    names = [_name(source.source, parts=1) for source in sources]
    longer = [_name(source.source, parts=2) for source in sources]
    several = Counter(names)
    names = [
        name if several[name] == 1 else other for name, other in zip(names, longer, strict=True)
    ]
    earlier = [names[:number].count(name) for number, name in enumerate(names)]
    return [
        f"{name} ({count + 1})" if count else name
        for name, count in zip(names, earlier, strict=True)
    ]


def number_sources(examples: Sequence[Example], names: Sequence[str]) -> NDArray[np.int64]:
    """For each row the number of its source among `names`."""
    if len(names) == 1:
        return np.zeros(len(examples), np.int64)
    found = names_of(examples, "source")
    places = np.array([names.index(word) for word in found.words], np.int64)
    return places[found.numbers]


def _name(source: str, *, parts: int) -> str:
    return source if source.startswith("hub:") else "/".join(Path(source).parts[-parts:])
