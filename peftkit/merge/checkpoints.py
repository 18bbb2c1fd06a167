"""Merges that end in whole weights: fine-tuned models of one base, and adapters among them.

Nothing is ever held but a few blocks of rows, or one tensor where a method needs its statistics. A
sum is multiplied and added in place; other methods read their blocks from a stream.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from peftkit.base.locate import digest
from peftkit.disk.durable import whole_folder
from peftkit.disk.replacing import refuse_to_replace
from peftkit.errors import RecipeError
from peftkit.merge.base_weights import open_base
from peftkit.merge.kinship import VOCABULARY, vocabulary_rows
from peftkit.merge.methods.catalog import find_method
from peftkit.merge.methods.gram import gram_of_layer
from peftkit.merge.methods.in_place import add_in_place, sum_weights
from peftkit.merge.methods.inputs import Inputs
from peftkit.merge.methods.stream import Layer, Stream
from peftkit.merge.model_files import BLOCK, MERGE_FILE, PLAIN, refuse_lossy, write_model
from peftkit.merge.row_changes import BaseRows, RowChange
from peftkit.merge.tensor_files import FLOATS, TensorFiles
from peftkit.merge.terms import ALIKE, Layers, Part, is_whole_model, open_term
from peftkit.merge.vocabulary import align, write_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from peftkit.merge.methods.catalog import Method
    from peftkit.merge.methods.entry_wise import EntryWise
    from peftkit.merge.model_files import Finish, Written
    from peftkit.merge.row_changes import Fill
    from peftkit.merge.terms import Layers, Part, Term
    from peftkit.merge.vocabulary import Alignment, Rule

    Begin = Callable[[str], Fill]
    """Takes the statistics of a tensor, and gives what fills in its merged change."""

ROOM = 1 << 20
"""Bytes for what lies beside the weights."""


@dataclass(frozen=True, slots=True)
class How:
    """A method of the catalog, and its settings as a recipe writes them."""

    method: str = "sum"
    settings: Mapping[str, Any] = field(default_factory=dict)


SUM = How()
"""Every change times its weight."""


@dataclass(frozen=True, slots=True)
class MergedModel:
    """A model that was written, and what rounding took of its change."""

    folder: Path
    lost: dict[str, float]
    """By tensor: the norm of what is missing, by that of the change."""
    relative: float
    """The same of all together."""
    digests: dict[str, str]
    """By file of weights: its sha256."""


def merge_checkpoints(
    parts: Sequence[Part],
    base: str,
    out: Path,
    *,
    how: How = SUM,
    layers: Layers = ALIKE,
    vocabulary: Rule = "same",
    finish: Finish = PLAIN,
) -> MergedModel:
    """Write the base with what some models and adapters change of it, merged by a method.

    Args:
        parts: fine-tuned models or adapters of the base, each with its weight.
        base: a folder, a hub id or an embedded base; its configuration and tokenizer are kept.
        out: the folder of the new model.
        how: the method, and what it is told.
        layers: what is weighed otherwise in some layers, or left out.
        vocabulary: what becomes of tokens that not all of them have.
        finish: what is said beside it, and how much rounding may take.

    Raises:
        RecipeError: the method cannot merge this, or something is not there.
        InputError: a model is not of this base, is damaged, or holds NaN.
        RunError: the result would be the base itself, or not finite.
        WriteError: it could not be written; what was there still is.
    """
    chosen = find_method(how.method)
    told = chosen.read(how.settings)
    _refuse_kind(chosen)
    refuse_to_replace(out, MERGE_FILE)
    with ExitStack() as stack:
        files = stack.enter_context(TensorFiles(open_base(base).origin))
        aligned = _align(vocabulary, files, parts)
        grown = {n: aligned.rows for n in files.places if n.endswith(VOCABULARY)}
        rows = BaseRows(files, _dtype(files), {n: r for n, r in grown.items() if r is not None})
        terms = [
            stack.enter_context(open_term(part, rows, layers, aligned.maps.get(part.name)))
            for part in parts
        ]
        rows.new = _new_rows(aligned, rows, dict(zip((p.name for p in parts), terms, strict=True)))
        layers.check([name for term in terms for name in term.changes])
        inputs = Inputs(
            tuple(part.weight for part in parts),
            tuple(part.name for part in parts),
            tuple(term.digest for term in terms),
        )
        chosen.check(inputs)
        changes = _by_tensor(files, terms)
        begin = _merger(chosen, told, rows, changes, inputs)
        merged = {name: (lambda name=name: begin(name)) for name in changes}
        with whole_folder(out, files.bytes + ROOM) as building:
            written = write_model(files, rows, merged, building)
            write_vocabulary(aligned, building)
            refuse_lossy(written, finish.fail_above)
            facts = _describe(files, parts, terms, written)
            facts |= {"method": how.method, "settings": dict(how.settings)}
            facts["vocabulary"] = dict(aligned.facts)
            text = json.dumps({**facts, **(finish.note or {})}, indent=2) + "\n"
            (building / MERGE_FILE).write_text(text, encoding="utf-8")
    return MergedModel(out, written.lost, written.relative, written.digests)


def _align(rule: Rule, base: TensorFiles, parts: Sequence[Part]) -> Alignment:
    models = {}
    for part in parts:
        if is_whole_model(part.path):
            with TensorFiles(open_base(part.path).origin) as tuned:
                models[part.name] = (tuned.origin, vocabulary_rows(tuned))
    return align(rule, base.origin, vocabulary_rows(base), models)


def _new_rows(
    aligned: Alignment, base: BaseRows, terms: Mapping[str, Term]
) -> dict[str, dict[int, Tensor]]:
    """What stands for tokens that the base does not know: the mean of the rows that there are."""
    found: dict[str, dict[int, Tensor]] = {}
    for name in base.files.places if aligned.new else ():
        if name.endswith(VOCABULARY):
            found[name] = {
                row: torch.stack(
                    [_row(terms[model], name, place, base.dtype) for model, place in known.items()]
                ).mean(0)
                for row, known in aligned.new.items()
            }
    return found


def _row(term: Term, name: str, place: int, dtype: torch.dtype) -> Tensor:
    assert term.tuned is not None, "only models of their own have rows of new tokens"  # noqa: S101
    return term.tuned.pick(term.names[name], torch.tensor([place]))[0].to(dtype)


def _refuse_kind(method: Method) -> None:
    if method.kind not in ("entry-wise", "gram"):
        raise RecipeError(
            f"method `{method.name}` looks at directions or at data, and cannot read whole weights "
            "a few rows at a time",
            hint="`peftkit extract` makes an adapter of a fine-tuned model; those it merges",
        )


def _dtype(files: TensorFiles) -> torch.dtype:
    """What sums are taken in: at least twice the bits of any weight."""
    wide = any(place.format in ("F32", "F64") for place in files.places.values())
    return torch.float64 if wide else torch.float32


def _by_tensor(files: TensorFiles, terms: Sequence[Term]) -> dict[str, tuple[RowChange, ...]]:
    """For each tensor that any term changes what every term does, in the order of the files."""
    nothing = RowChange(())
    return {
        name: tuple(term.changes.get(name, nothing) for term in terms)
        for name, place in files.places.items()
        if place.format in FLOATS and any(name in term.changes for term in terms)
    }


def _merger(
    method: Method,
    told: Any,
    base: BaseRows,
    changes: Mapping[str, tuple[RowChange, ...]],
    inputs: Inputs,
) -> Begin:
    """What merges the changes of a tensor: in place for sums, from a stream for the rest."""
    if method.kind == "gram":
        stream = _stream(base, changes, inputs)
        gram = sum((gram_of_layer(stream, layer) for layer in stream.layers), start=torch.zeros(()))
        # The stream has the order of sums; the multiples follow it, and so do the changes below.
        weights = tuple(method.function(gram, inputs.sorted().weights, told))
        return _sums(changes, inputs, weights)
    function: EntryWise = method.function(told)
    if (found := sum_weights(function, inputs.sorted().weights)) is not None:
        return _sums(changes, inputs, found)
    stream = _stream(base, changes, inputs)
    enter = function.prepare(stream)
    by_name = {layer.name: layer for layer in stream.layers}

    def begin(name: str) -> Fill:
        merge = enter(by_name[name])

        def fill(start: int, stop: int, into: Tensor) -> None:
            into.copy_(merge(start, stop))

        return fill

    return begin


def _sums(
    changes: Mapping[str, tuple[RowChange, ...]], inputs: Inputs, weights: tuple[float, ...]
) -> Begin:
    """Weighted sums, taken in place; the weights are in the order of sums."""

    def begin(name: str) -> Fill:
        fills = [each.fill for each in inputs.fit(changes[name], f"changes of `{name}`")]

        def fill(start: int, stop: int, into: Tensor) -> None:
            add_in_place(fills, weights, start, stop, into)

        return fill

    return begin


def _stream(base: BaseRows, changes: Mapping[str, tuple[RowChange, ...]], inputs: Inputs) -> Stream:
    layers = []
    for name, several in changes.items():
        place = base.place(name)
        reads = tuple(each.reader(place.columns, base.dtype) for each in several)
        layers.append(Layer(name, place.rows, place.columns, reads))
    return Stream.of(layers, inputs, entries=BLOCK, dtype=base.dtype)


def _describe(
    files: TensorFiles, parts: Sequence[Part], terms: Sequence[Term], written: Written
) -> dict[str, Any]:
    return {
        "base": files.origin.name,
        "base_digest": digest(files.origin),
        "terms": [
            {"name": part.name, "digest": term.digest, "weight": part.weight}
            for part, term in zip(parts, terms, strict=True)
        ],
        "lost": {"relative": written.relative, "tensors": written.lost},
        "files": written.digests,
    }
