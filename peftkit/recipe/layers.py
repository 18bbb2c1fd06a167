"""Stack a recipe on what it extends, every value still knowing where it was written."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import RecipeError
from peftkit.recipe.files import is_there, read_document
from peftkit.recipe.paths import anchor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.recipe.strict_yaml import Document, Location

_CHOOSERS = {"adapter": ("method", "lora"), "method": ("name", "sum")}
"""Sections of several kinds: the key that names the kind, and what it is where nothing does."""
KEPT = ("under", "under_as")
"""Keys of `adapter` that mean the same to every method."""
_SAME_METHOD = {"qlora": "lora"}
"""Shorthands whose section has the keys of another method."""


@dataclass(frozen=True, order=True)
class Origin:
    """Where a value was written; sorts in reading order, a recipe before what it extends."""

    distance: int = 0
    """0 for the recipe, 1 for the file it extends, and so on; `--set` options come last."""
    line: int = 1
    label: str = "line 1"
    """How a message names the place."""
    spelled: str = field(default="", compare=False)
    """A number as it was written."""


@dataclass(frozen=True)
class Layer:
    """Values, and where each was written."""

    values: dict[str, Any]
    origins: Mapping[Location, Origin]

    def origin(self, location: Location) -> Origin:
        """Where the value at `location` was written, or the nearest section around it."""
        while location and location not in self.origins:
            location = location[:-1]
        return self.origins.get(location, Origin())

    def home(self, location: Location) -> Location:
        """Where an author would look for what is at `location`."""
        return location

    def over(self, below: Layer) -> Layer:
        """This layer on top of another: mappings merge, anything else replaces."""
        return Layer(merge(below.values, self.values), {**below.origins, **self.origins})


@dataclass(frozen=True)
class RecipeFile:
    """One file of a chain of `extends`."""

    path: Path
    shown: str
    """What the `extends` that led here says; empty for the recipe itself."""
    document: Document

    def origin(self, location: Location, distance: int = 0) -> Origin:
        """Where in this file the value at `location` stands."""
        line = self.document.lines[location]
        label = f"{self.shown} line {line}".lstrip()
        return Origin(distance, line, label, self.document.spelled.get(location, ""))


def read_chain(path: Path) -> tuple[RecipeFile, ...]:
    """The recipe at `path`, the file it extends, the file that one extends, and so on.

    Raises:
        RecipeError: a file is missing or not YAML, or the chain has no end.
    """
    chain = [RecipeFile(path, "", read_document(path))]
    while "extends" in chain[-1].document.value:
        chain.append(_extended(chain))
    return tuple(chain)


def stack(chain: tuple[RecipeFile, ...]) -> Layer:
    """What a chain says together: the nearest file wins, paths seen from the file they are in.

    `name` is never inherited: two recipes of one name would share a run folder.
    """
    layers = [_layer(file, distance) for distance, file in enumerate(chain)]
    return reduce(lambda below, above: above.over(below), reversed(layers))


def merge(below: Any, above: Any, called: int | str = "") -> Any:
    """`above` laid over `below`: mappings key by key, anything else, lists too, replaced.

    A section, by the key that it is called, that names another method starts afresh: the old
    method's keys mean nothing to it, but for what every method knows.
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    chooser, implied = _CHOOSERS.get(str(called), ("", ""))
    if chooser in above and _method(above, chooser, implied) != _method(below, chooser, implied):
        return {key: below[key] for key in KEPT if key in below} | above
    return below | {key: merge(below.get(key), value, key) for key, value in above.items()}


def _method(section: dict[str, Any], chooser: str, implied: str) -> Any:
    named = section.get(chooser, implied)
    return _SAME_METHOD.get(named, named) if isinstance(named, str) else named


def _layer(file: RecipeFile, distance: int) -> Layer:
    own = {"extends"} if distance == 0 else {"extends", "name"}
    values = {key: value for key, value in file.document.value.items() if key not in own}
    origins = {location: file.origin(location, distance) for location in file.document.lines}
    return Layer(anchor(values, file.path.parent), origins)


def _extended(chain: list[RecipeFile]) -> RecipeFile:
    child = chain[-1]
    shown = child.document.value["extends"]
    if not isinstance(shown, str) or not shown:
        raise _refused(chain, "expected the path of a recipe, such as `extends: ../base.yaml`")
    path = Path(os.path.normpath(child.path.parent / shown))
    if not is_there(path):
        raise _refused(chain, f"no file at {path}")
    if path.resolve() in [file.path.resolve() for file in chain]:
        circle = " -> ".join(str(p) for p in (*(file.path for file in chain), path))
        raise _refused(chain, f"the files extend each other in a circle: {circle}")
    return RecipeFile(path, shown, read_document(path))


def _refused(chain: list[RecipeFile], found: str) -> RecipeError:
    place = chain[-1].origin(("extends",)).label
    return RecipeError(
        f"{chain[0].path} is not a valid recipe", problems=[f"{place}: extends: {found}"]
    )
