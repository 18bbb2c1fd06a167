"""What a frozen model computes below its first adapter, computed once a document and kept.

With adapters in the upper blocks only, the states that enter the first adapted block are the same
in every epoch. They are computed once, before the first step, in the order of the data and in
groups that follow from it alone, so a run that lost them makes the same ones again, bit for bit.
They lie in one file that is mapped, not read; the blocks below hand on what they are given, and the
last of them hands on what is in the file. What is random or trains below it is refused, and so is a
family where the states are not all that passes from block to block: a trial pass shows it.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from peftkit.base.targets import BLOCK, first_trained_block, list_blocks
from peftkit.data.batch import Batch, collate, flatten
from peftkit.data.views import Picked, lengths_of
from peftkit.disk.cache import entry_folder, make_room, mark_used
from peftkit.disk.digest import sha256_of
from peftkit.disk.durable import whole_folder
from peftkit.fast.loss import token_losses
from peftkit.fast.refusals import unwrap
from peftkit.fast.varlen import DROPOUTS, attending

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from peftkit.data.example import Example

STATES, MANIFEST = "states.bin", "MANIFEST.json"
GROUP_TOKENS = 2048
"""Tokens computed together when the file is filled."""
NOISES = ("router_jitter_noise", "jitter_noise", "input_jitter_noise")
"""What some routers add while they train."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Where training begins: the blocks, and the number of the first that is adapted."""

    blocks: tuple[Any, ...]
    first: int
    as_tuple: bool = False
    """Whether a block returns its states in a tuple."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The states of every document that enter the first adapted block."""

    cut: Cut
    states: Tensor
    """(all tokens, width), mapped from the file."""
    keys: NDArray[np.uint64]
    """(documents,) of each document's tokens, sorted."""
    starts: NDArray[np.int64]
    """(documents,) where the states of each begin."""

    def gather(self, batch: Batch) -> Tensor:
        """The states of a batch, (rows, time, width); zeros where it is padding."""
        places = batch.inputs.shape
        found = torch.zeros(*places, self.states.shape[1], dtype=self.states.dtype)
        for row, documents in enumerate(batch.documents):
            at = 0
            for document in documents:
                start = int(self.starts[np.searchsorted(self.keys, key_of(document))])
                end = at + document.length
                found[row, at:end] = self.states[start : start + document.length]
                at = end
        return found.to(batch.inputs.device, non_blocking=True)


def find_cut(model: Any) -> Cut | str:
    """Where training begins, or why nothing below it can be kept."""
    plain = unwrap(model)
    blocks = tuple(list_blocks(plain))
    first = min(first_trained_block(model, plain), len(blocks))
    if reason := next(_refuse(model, plain, blocks[:first]), None):
        return reason
    one = torch.zeros(1, 1, dtype=torch.long, device=plain.device)
    output = _run_lower(model, Batch(one, one, None, 1), blocks[first - 1])
    return Cut(blocks, first, as_tuple=isinstance(output, tuple))


def _refuse(model: Any, plain: Any, lower: Sequence[Any]) -> Iterator[str]:
    """Why what `lower` compute cannot be kept, the plainest reason first; mostly nothing."""
    if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
        yield "its adapter puts virtual tokens before the text"
    if not lower:
        yield "no block stands below the first parameter that trains"
    if any("forward" in vars(block) for block in lower):
        yield "something has replaced the forward pass of its blocks"
    config = plain.config.get_text_config()
    for name in (*DROPOUTS, *NOISES):
        if getattr(config, name, 0):
            yield f"it is random below the adapter (`{name}: {getattr(config, name)}`)"
    for name, module in plain.named_modules():
        match = BLOCK.search(f"{name}.")
        below = match is None or int(match[1]) < len(lower)
        if below and isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p:
            yield f"it is random below the adapter (`{name}` drops {module.p:.0%})"


class _Reached(Exception):  # noqa: N818 - a way out of a forward pass, and no error
    """The last block below the adapters is done."""


def compute_states(model: Any, batch: Batch, cut: Cut) -> Tensor:
    """What the last block below the adapters hands on, (rows, time, width)."""
    output = _run_lower(model, batch, cut.blocks[cut.first - 1])
    states: Tensor = output[0] if cut.as_tuple else output
    return states


@torch.no_grad()
def _run_lower(model: Any, batch: Batch, last: Any) -> Any:
    """What block `last` returns; nothing above it is computed."""
    found: list[Any] = []

    def stop(_block: Any, _inputs: Any, output: Any) -> None:
        found.append(output)
        raise _Reached

    handle = last.register_forward_hook(stop)
    places = {} if batch.positions is None else {"position_ids": batch.positions}
    try:
        with attending(model, batch.lengths):
            unwrap(model).base_model(input_ids=batch.inputs, use_cache=False, **places)
    except _Reached:
        return found[0]
    finally:
        handle.remove()
    raise RuntimeError("the forward pass ended below the first adapted block")


@contextmanager
def feeding(cut: Cut, states: Tensor) -> Iterator[None]:
    """Inside, a forward pass begins at the first adapted block, with these states.

    The block below hands them on, so a checkpointed block that runs again finds them as well.
    """

    def pass_on(*args: Any, **settings: Any) -> Any:
        given = args[0] if args else settings["hidden_states"]
        return (given,) if cut.as_tuple else given

    def give_states(*_args: Any, **_settings: Any) -> Any:
        return (states,) if cut.as_tuple else states

    lower = cut.blocks[: cut.first]
    for block in lower:
        block.forward = pass_on
    lower[-1].forward = give_states
    try:
        yield
    finally:
        for block in lower:
            del block.forward


def key_of(document: Example) -> np.uint64:
    """Digest of a document's tokens: all that its states depend on, with the base."""
    digest = hashlib.sha256(document.tokens.tobytes()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def check_feeding(model: Any, batch: Batch, cut: Cut) -> float:
    """How far the losses of a fed pass are from those of a whole one, relatively.

    0 where the states are all that passes from block to block, as both take the same steps.
    """
    training = [module for module in model.modules() if module.training]
    other = replace(batch, inputs=batch.inputs.flip(1))
    model.eval()
    try:
        with torch.no_grad():
            states = compute_states(model, batch, cut)
            wanted = token_losses(model, batch)
            token_losses(model, other)  # what a block left lying about for another is now wrong
            with feeding(cut, states):
                found = token_losses(model, batch)
    finally:
        for module in training:
            module.training = True
    return float((found - wanted).norm() / wanted.norm())


def keep_states(
    model: Any, documents: Sequence[Example], cut: Cut, *, base: str, flat: bool
) -> Kept:
    """The states of every document: from the file if there is a whole one, else computed.

    Raises:
        WriteError: the file could not be written.
    """
    every = np.fromiter(map(key_of, documents), np.uint64, len(documents))
    places = np.sort(np.unique(every, return_index=True)[1])  # of two alike, the first
    own, keys = Picked(documents, places), every[places]
    dtype, width = describe_states(model)
    ends = np.cumsum(lengths_of(own))
    tokens = int(ends[-1])
    facts = (base, cut.first, str(dtype), model.device.type, flat)
    folder = entry_folder("states", _digest(keys, facts))
    if not _is_whole(folder):
        needed = tokens * width * dtype.itemsize
        make_room(needed)
        with whole_folder(folder, needed) as building:
            _fill(model, own, cut, building / STATES, flat=flat)
            manifest = {"sha256": sha256_of(building / STATES)}
            (building / MANIFEST).write_text(json.dumps(manifest) + "\n", encoding="utf-8")
    mark_used(folder)
    path = str(folder / STATES)
    states = torch.from_file(path, shared=False, size=tokens * width, dtype=dtype)
    order = np.argsort(keys)
    starts = (ends - lengths_of(own))[order]
    return Kept(cut, states.view(tokens, width), keys[order], starts)


def describe_states(model: Any) -> tuple[torch.dtype, int]:
    """Number format and width of what passes from block to block."""
    plain = unwrap(model)
    width = int(plain.config.get_text_config().hidden_size)
    return plain.get_input_embeddings().weight.dtype, width


def _digest(keys: NDArray[np.uint64], facts: tuple[Any, ...]) -> str:
    """Digest of everything that the file follows from, to the last bit."""
    processor = (torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    made_by = (GROUP_TOKENS, torch.__version__, transformers.__version__, *processor)
    total = hashlib.sha256(repr((*facts, *made_by)).encode())
    total.update(keys.tobytes())
    return total.hexdigest()


def _fill(model: Any, documents: Sequence[Example], cut: Cut, path: Path, *, flat: bool) -> None:
    """Write the states of all documents one after the other, a group at a time."""
    device = next(model.parameters()).device
    model.eval()
    with path.open("wb") as file:
        for group in _group(documents):
            batch = flatten(group) if flat else collate([[each] for each in group], pad_id=0)
            states = compute_states(model, batch.to(device), cut).cpu()
            for row, each in zip(states, [None] if flat else group, strict=True):
                own = row if each is None else row[: each.length]
                file.write(own.contiguous().view(torch.uint8).numpy().tobytes())


def _group(documents: Sequence[Example]) -> Iterator[list[Example]]:
    """Documents in the order of the data, up to `GROUP_TOKENS` tokens or one document."""
    group: list[Example] = []
    for document in documents:
        if group and sum(each.length for each in group) + document.length > GROUP_TOKENS:
            yield group
            group = []
        group.append(document)
    if group:
        yield group


def _is_whole(folder: Path) -> bool:
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(facts["sha256"] == sha256_of(folder / STATES))
    except (OSError, ValueError, KeyError, TypeError):
        return False
