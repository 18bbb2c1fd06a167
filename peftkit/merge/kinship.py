"""Whether a model is a fine-tune of a base: by its kind, its tensors, and the numbers in them.

Two models may have the same shapes and nothing else in common, and the sum of such changes writes
nonsense; so models are compared before a number of them is used.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from peftkit.base.locate import read_json
from peftkit.errors import InputError
from peftkit.merge.base_weights import nearest
from peftkit.merge.tensor_files import EIGHT_BITS, FLOATS, TensorFiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.merge.row_changes import BaseRows

KIN = 0.5
"""Cosine below which two models' weights have nothing to do with each other: that of chance is 0,
and of a fine-tune with its base it is above 0.9."""
LOOKED_AT = 32
"""Matrices, and rows of each, that are compared."""
TIED = "tie_word_embeddings"
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "shared.weight")
VOCABULARY = (*HEADS, *EMBEDDINGS)
"""How families call them: what has a row for each token."""


def compare(tuned: TensorFiles, base: BaseRows, *, aligned: bool) -> dict[str, str]:
    """By tensor of the base that holds numbers, what it is called in a fine-tuned model.

    Raises:
        InputError: it is no fine-tune of this base.
    """
    _refuse_other_kind(tuned, base.files)
    names = _match(tuned, base.files, aligned=aligned)
    _refuse_stranger(tuned, base, [n for n in names if not n.endswith(VOCABULARY)], names)
    return names


def vocabulary_rows(files: TensorFiles) -> int:
    """How many rows a model's embedding has."""
    found = [place.rows for name, place in files.places.items() if name.endswith(EMBEDDINGS)]
    return max(found, default=0)


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


def _match(tuned: TensorFiles, base: TensorFiles, *, aligned: bool) -> dict[str, str]:
    """The same; rows of vocabularies may differ in number where they are matched by token.

    Raises:
        InputError: tensors are missing, too many, or of other shapes.
    """
    _refuse_untied(tuned, base)
    numbers = [name for name, place in base.places.items() if place.format in FLOATS]
    found = {name: nearest(name, tuned.places) for name in base.places}
    problems = [
        f"`{name}`: numbers of 8 bits, which cannot be added up"
        for name, place in base.places.items()
        if place.format in EIGHT_BITS
    ]
    for name in numbers:
        theirs = found[name]
        if theirs is None:
            problems.append(f"`{name}`: missing, and the base has it")
        elif tuned.places[theirs].format not in FLOATS:
            problems.append(f"`{theirs}`: format {tuned.places[theirs].format}")
        elif not _fit(name, tuned.places[theirs].shape, base.places[name].shape, aligned=aligned):
            shapes = tuned.places[theirs].shape, base.places[name].shape
            problems.append(f"`{theirs}`: {shapes[0]}, in the base {shapes[1]}")
    problems += [
        f"`{name}`: the base has no such tensor"
        for name in tuned.places
        if name not in found.values() and not _copy_of_embedding(name, tuned)
    ]
    if problems:
        raise InputError(
            f"`{tuned.origin.name}` is no fine-tune of `{base.origin.name}`", problems=problems[:9]
        )
    return {name: theirs for name in numbers if (theirs := found[name]) is not None}


def _fit(name: str, one: tuple[int, ...], base: tuple[int, ...], *, aligned: bool) -> bool:
    return one == base or (aligned and name.endswith(VOCABULARY) and one[1:] == base[1:])


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


def _refuse_stranger(
    tuned: TensorFiles, base: BaseRows, looked_at: Sequence[str], names: Mapping[str, str]
) -> None:
    """Compare some rows of some matrices.

    Raises:
        InputError: they have nothing in common.
    """
    matrices = [name for name in looked_at if len(base.files.places[name].shape) > 1]
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
