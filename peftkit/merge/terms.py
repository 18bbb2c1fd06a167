"""The terms of a merge into whole weights: what each changes, and whether it is of the base at all.

Models are compared before a number of them is used: two models may have the same shapes and
nothing else in common, and the sum of such changes writes nonsense.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from peftkit.base.locate import digest, read_json
from peftkit.errors import InputError, RecipeError
from peftkit.merge.base_weights import nearest, open_base
from peftkit.merge.row_changes import RowChange, of_tuned
from peftkit.merge.tensor_files import EIGHT_BITS, FLOATS, TensorFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from peftkit.merge.row_changes import BaseRows, Fill

KIN = 0.5
"""Cosine below which two models' weights have nothing to do with each other: that of chance is 0,
and of a fine-tune with its base it is above 0.9."""
LOOKED_AT = 32
"""Matrices, and rows of each, that are compared."""
ADAPTER_CONFIG = "adapter_config.json"
TIED = "tie_word_embeddings"


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


def is_whole_model(path: str) -> bool:
    """Whether a folder holds a model of its own, not an adapter and not a run."""
    folder = Path(path).expanduser()
    whole = (folder / "config.json").exists() and not (folder / ADAPTER_CONFIG).exists()
    return whole and not (folder / "adapter").exists()


@contextmanager
def open_term(part: Part, base: BaseRows, layers: Layers) -> Iterator[Term]:
    """A term, whose files stay open until the block ends.

    Raises:
        RecipeError: it is not there.
        InputError: it is damaged, or not of this base.
    """
    if is_whole_model(part.path):
        with TensorFiles(open_base(part.path).origin) as tuned:
            fills = _compare(tuned, base)
            yield Term(digest(tuned.origin), _weigh(part.name, fills, layers))
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


def _compare(tuned: TensorFiles, base: BaseRows) -> dict[str, tuple[Fill, ...]]:
    """What a fine-tuned model changes of each tensor of numbers.

    Raises:
        InputError: it is no fine-tune of this base.
    """
    _refuse_other_kind(tuned, base.files)
    names = _match(tuned, base.files)
    _refuse_stranger(tuned, base, names)
    return {
        name: (of_tuned(partial(tuned.rows, theirs), base.reader(name)),)
        for name, theirs in names.items()
    }


def _refuse_other_kind(tuned: TensorFiles, base: TensorFiles) -> None:
    one, other = (read_json(files.origin) for files in (base, tuned))
    problems = [
        f"`{key}`: `{other.get(key)}`, in the base `{one.get(key)}`"
        for key in ("model_type",)
        if one.get(key) != other.get(key)
    ]
    if problems:
        raise InputError(
            f"`{tuned.origin.name}` is another kind of model than `{base.origin.name}`",
            problems=problems,
        )


def _match(tuned: TensorFiles, base: TensorFiles) -> dict[str, str]:
    """By tensor of the base that holds numbers, what it is called in a fine-tuned model.

    Raises:
        InputError: tensors are missing, too many, or of other shapes.
    """
    found: dict[str, str] = {}
    problems = []
    for name, place in base.places.items():
        theirs = nearest(name, tuned.places)
        if place.format in EIGHT_BITS:
            problems.append(f"`{name}`: numbers of 8 bits, which cannot be added up")
        if place.format not in FLOATS:
            continue
        if theirs is None:
            problems.append(f"`{name}`: missing, and the base has it")
        elif tuned.places[theirs].format not in FLOATS:
            problems.append(f"`{theirs}`: format {tuned.places[theirs].format}")
        elif (shape := tuned.places[theirs].shape) != place.shape:
            problems.append(f"`{theirs}`: {shape}, in the base {place.shape}")
        else:
            found[name] = theirs
    _refuse_untied(tuned, base)
    known = {nearest(name, tuned.places) for name in base.places}
    problems += [
        f"`{name}`: the base has no such tensor"
        for name in tuned.places
        if name not in known and not _copy_of_embedding(name, tuned)
    ]
    if problems:
        raise InputError(
            f"`{tuned.origin.name}` is no fine-tune of `{base.origin.name}`", problems=problems[:9]
        )
    return found


def _refuse_untied(tuned: TensorFiles, base: TensorFiles) -> None:
    """Say where only one of two models has one tensor for its embedding and its head.

    Raises:
        InputError: that is so.
    """
    ties = [_is_tied(files) for files in (base, tuned)]
    if ties[0] != ties[1]:
        who = "the base" if ties[0] else f"`{tuned.origin.name}`"
        other = f"`{tuned.origin.name}`" if ties[0] else "the base"
        raise InputError(
            f"{who} has one tensor for its embedding and its head, and {other} one for each: as "
            "one tensor they would change both ways at once",
            hint="give every model a head of its own, with `tie_word_embeddings: false`, or leave "
            "that one out",
        )


def _is_tied(files: TensorFiles) -> bool:
    heads = [name for name in files.places if name.endswith(HEADS)]
    if not heads:
        return True
    said = read_json(files.origin).get(TIED)
    return said is True or all(_copy_of_embedding(name, files) for name in heads)


HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "shared.weight")
"""How families call them."""


def _copy_of_embedding(name: str, files: TensorFiles) -> bool:
    """Whether a tensor is a head that is the embedding, written twice."""
    if not name.endswith(HEADS):
        return False
    place = files.places[name]
    for other, twin in files.places.items():
        same = (twin.format, twin.shape) == (place.format, place.shape)
        if other.endswith(EMBEDDINGS) and same and _equal(files, name, other):
            return True
    return False


def _equal(files: TensorFiles, one: str, other: str, piece: int = 1 << 20) -> bool:
    size = files.places[one].bytes
    for start in range(0, size, piece):
        stop = min(start + piece, size)
        if not files.raw(one, start, stop).clone().equal(files.raw(other, start, stop)):
            return False
    return True


def _refuse_stranger(tuned: TensorFiles, base: BaseRows, names: Mapping[str, str]) -> None:
    """Compare some rows of some matrices.

    Raises:
        InputError: they have nothing in common.
    """
    matrices = [name for name in names if len(base.files.places[name].shape) > 1]
    step = max(1, len(matrices) // LOOKED_AT)
    cosines = []
    for name in matrices[::step]:
        stop = min(LOOKED_AT, base.files.places[name].rows)
        one = base.read(name, 0, stop)
        other = tuned.rows(names[name], 0, stop).to(one.dtype)
        size = float(one.norm() * other.norm())
        cosines.append(float((one * other).sum()) / size if size else 1.0)
    if cosines and median(cosines) < KIN:
        raise InputError(
            f"`{tuned.origin.name}` is of another base than `{base.files.origin.name}`: the shapes "
            f"are the same, but the weights have nothing in common (cosine {median(cosines):.2f})",
            hint="name the base that it was trained on",
        )


def _fits(pattern: str, tensor: str) -> bool:
    return fnmatchcase(tensor, pattern) or fnmatchcase(tensor.removesuffix(".weight"), pattern)
