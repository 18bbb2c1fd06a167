"""The terms of a merge into whole weights: where each is, and what it changes by rows."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.base.locate import digest
from peftkit.errors import RecipeError
from peftkit.merge.base_weights import open_base
from peftkit.merge.kinship import VOCABULARY, compare
from peftkit.merge.row_changes import RowChange, of_aligned, of_tuned
from peftkit.merge.tensor_files import TensorFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from peftkit.merge.row_changes import BaseRows, Fill

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Part:
    """A term of a formula: what it is called, where it is, what it is multiplied by."""

    name: str
    path: str
    """A fine-tuned model, an adapter or a run."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Layers:
    """What is weighed otherwise in some layers, or left out; patterns fit tensors or modules."""

    scale: tuple[tuple[str, Mapping[str, float]], ...] = ()
    """A pattern, and by term what its change is multiplied by there; the first that fits counts."""
    without: tuple[str, ...] = ()

    def factor(self, part: str, tensor: str) -> float:
        """What a term's change of a tensor is multiplied by."""
        fits = (
            times[part] for pattern, times in self.scale if part in times and _fits(pattern, tensor)
        )
        return float(next(fits, 1.0))

    def leaves_out(self, tensor: str) -> bool:
        """Whether nothing of a tensor is to change."""
        return any(_fits(pattern, tensor) for pattern in self.without)

    def check(self, tensors: Sequence[str]) -> None:
        """Refuse patterns for layers that fit none of what changes.

        Raises:
            RecipeError: there is one.
        """
        for pattern, _ in self.scale:
            if not any(_fits(pattern, tensor) for tensor in tensors):
                there = tensors[0] if tensors else "none"
                raise RecipeError(f"`{pattern}` fits no module; there is `{there}`")


ALIKE = Layers()
"""All layers count alike, and none is left out."""


@dataclass(frozen=True, slots=True)
class Term:
    """What a term changes, by tensor of the base, and the digest of its content."""

    digest: str
    changes: dict[str, RowChange] = field(default_factory=dict)
    tuned: TensorFiles | None = None
    """Its files, if it is a model of its own."""
    names: Mapping[str, str] = field(default_factory=dict)
    """By tensor of the base, what that model calls it."""


def is_whole_model(path: str) -> bool:
    """Whether a folder holds a model of its own, not an adapter and not a run."""
    folder = Path(path).expanduser()
    whole = (folder / "config.json").exists() and not (folder / ADAPTER_CONFIG).exists()
    return whole and not (folder / "adapter").exists()


@contextmanager
def open_term(
    part: Part, base: BaseRows, layers: Layers, rows: Tensor | None = None
) -> Iterator[Term]:
    """A term, whose files stay open until the block ends.

    Args:
        part: what and where it is.
        base: what it is compared with.
        layers: what is weighed otherwise.
        rows: for each row of the result's vocabulary its own row, where the two differ.

    Raises:
        RecipeError: it is not there.
        InputError: it is damaged, or not of this base.
    """
    if is_whole_model(part.path):
        with TensorFiles(open_base(part.path).origin) as tuned:
            names = compare(tuned, base, aligned=rows is not None)
            fills = {
                name: (_of_model(tuned, theirs, name, base, rows),)
                for name, theirs in names.items()
            }
            changes = _weigh(part.name, fills, layers)
            yield Term(digest(tuned.origin), changes, tuned, names)
        return
    found, content = _of_adapter(part, base)
    yield Term(content, _weigh(part.name, found, layers))


def _weigh(
    part: str, changes: Mapping[str, tuple[Fill, ...]], layers: Layers
) -> dict[str, RowChange]:
    return {
        name: RowChange(fills, layers.factor(part, name))
        for name, fills in changes.items()
        if not layers.leaves_out(name)
    }


def _of_adapter(part: Part, base: BaseRows) -> tuple[dict[str, tuple[Fill, ...]], str]:
    """What an adapter changes; reading one needs peft, which takes seconds to begin with."""
    from peftkit.merge.delta import Delta
    from peftkit.merge.folding import changes_of, refuse_what_has_no_place

    delta = Delta.load(part.path, base.files.origin.name)
    refuse_what_has_no_place(delta)
    found = {name: each.parts for name, each in changes_of(delta, base).items()}
    return found, "+".join(each.digest for each in delta.terms)


def _of_model(
    tuned: TensorFiles, theirs: str, name: str, base: BaseRows, rows: Tensor | None
) -> Fill:
    if rows is not None and name.endswith(VOCABULARY):
        return of_aligned(tuned, theirs, rows, base.reader(name))
    return of_tuned(partial(tuned.rows, theirs), base.reader(name))


def _fits(pattern: str, tensor: str) -> bool:
    return fnmatchcase(tensor, pattern) or fnmatchcase(tensor.removesuffix(".weight"), pattern)
