"""The arms on a GPU: this package as a run uses it, transformers and peft, TRL's defaults by hand.

All take the same documents an update. Packed arms lay them end to end in one micro-batch; padded
ones take as many micro-batches as it needs so that none has more positions than a packed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from arm import LEARNING_RATE, MAX_GRAD_NORM, Reading, Work
from documents import LONGEST
from hf_attention import choose_attention
from nf4 import quantize
from plain import add_lora, labels_of, take_gradients, trained
from shapes import RANK, fill_adapter
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from peftkit.adapters.attach import attach, trainable
from peftkit.data.batch import Layout, make_update
from peftkit.data.example import IGNORED
from peftkit.fast import lora, norm, varlen
from peftkit.fast.flash import find_kernel
from peftkit.fast.head import find_head, head_loss
from peftkit.fast.paths import restore_paths
from peftkit.fast.recompute import recompute
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.train.loop import accumulate, train
from peftkit.train.optimizer import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from frozen import Frozen

    from peftkit.data.example import Example


@dataclass(frozen=True, slots=True)
class Setting:
    """One place in the grid."""

    tokens: int
    """Most positions of a micro-batch."""
    recompute: bool


class Contender(Protocol):
    """One way to train a LoRA of rank 16 on every linear layer of the blocks."""

    model: Any
    optimizer: torch.optim.Optimizer
    work: Work
    about: dict[str, str]
    """What it could not know before it met this machine."""
    rated: bool
    """Whether its speed means anything; else it is there for its memory."""

    def enter(self, setting: Setting) -> None:
        """Go to a place in the grid, with the first adapter and a fresh optimizer."""

    def prepare(self, documents: Sequence[Example]) -> Any:
        """What its step takes; not timed."""

    def step(self, prepared: Any) -> float:
        """One optimizer update; the loss before it."""

    def read(self, documents: Sequence[Example]) -> Reading:
        """Loss and gradients of the documents by the path that `step` takes."""


class Ours:
    """`peftkit.train.loop.train`, an update at a time; laying it out is part of its step."""

    def __init__(self, base: Frozen, *, packed: bool, nf4: bool = False) -> None:
        model = base.make(torch.bfloat16)
        if nf4:
            quantize(model)
        # `attach` reads a four-bit weight's packed shape, and refuses it; the layers are the same.
        section = LoraSection(rank=RANK)
        self.model: Any = add_lora(model) if nf4 else attach(model, section, seed=0)
        self.work, self.rated, self._packed = Work(torch.bfloat16), True, packed
        self.about = _switch_on(self.model, packed=packed)
        self._paths = restore_paths(self.model, head=True)
        if self._paths.head is None:
            self.about["head"] = "refused"

    def enter(self, setting: Setting) -> None:
        """See `Contender`."""
        recompute(self.model, self.model.config.num_hidden_layers * setting.recompute)
        self._layout = _lay_out(setting, packed=self._packed)
        parameters = trainable(self.model)
        fill_adapter(parameters)
        self.optimizer = make_optimizer(parameters, weight_decay=0.0)
        self._taken = 0

    def prepare(self, documents: Sequence[Example]) -> Sequence[Example]:
        """See `Contender`."""
        return documents

    def step(self, prepared: Sequence[Example]) -> float:
        """See `Contender`."""
        self._taken += 1
        (step,) = train(
            self.model,
            iter([make_update(prepared, self._layout)]),
            self.optimizer,
            lambda _: LEARNING_RATE,
            steps=range(self._taken, self._taken + 1),
            max_grad_norm=MAX_GRAD_NORM,
            seed=0,
            loss=self._paths.summed,
        )
        return step.loss

    def read(self, documents: Sequence[Example]) -> Reading:
        """See `Contender`."""
        self.model.train()
        update = make_update(documents, self._layout)
        loss = accumulate(self.model, update, self.model.device, seed=0, loss=self._paths.summed)
        return Reading(float(loss), take_gradients(self.model))


class Plain:
    """A loop over batches that lie ready on the device, the model's own loss, and fused AdamW."""

    def __init__(self, base: Frozen, rows: Callable[..., Any], *, within: bool = False) -> None:
        model = base.make(torch.bfloat16)
        self.about: dict[str, str] = {}
        if within:
            name, self.about["attention"] = choose_attention(base.device)
            model.set_attn_implementation(name)
        self.model: Any = add_lora(model)
        self.work, self.rated, self._rows = Work(torch.bfloat16), True, rows

    def enter(self, setting: Setting) -> None:
        """See `Contender`."""
        _checkpoint(self.model, on=setting.recompute)
        self._setting = setting
        fill_adapter(trained(self.model))
        self.optimizer = _plain_optimizer(self.model)

    def prepare(self, documents: Sequence[Example]) -> list[dict[str, Any]]:
        """See `Contender`."""
        count = torch.tensor(sum(document.trained_tokens for document in documents))
        batches = [
            dict(batch, num_items_in_batch=count, use_cache=False)
            for batch in self._rows(documents, self._setting)
        ]
        return [{name: _place(each, self.model) for name, each in b.items()} for b in batches]

    def step(self, prepared: Sequence[dict[str, Any]]) -> float:
        """See `Contender`."""
        return _update(self.model, self.optimizer, self._accumulate(prepared))

    def read(self, documents: Sequence[Example]) -> Reading:
        """See `Contender`."""
        return Reading(float(self._accumulate(self.prepare(documents))), take_gradients(self.model))

    def _accumulate(self, batches: Sequence[dict[str, Any]]) -> torch.Tensor:
        self.model.train()
        total = torch.zeros((), device=self.model.device)
        for batch in batches:
            loss = self.model(**batch).loss
            loss.backward()
            total += loss.detach()
        return total


class ImitatedTrl:
    """What TRL's defaults hold: a float32 base, autocast, every block run again, padded rows.

    The logits go through this package's head in chunks, so it holds no more of them than TRL's own
    tiles do. It is there for its memory; its speed is not TRL's.
    """

    def __init__(self, base: Frozen) -> None:
        self.model: Any = add_lora(base.make(torch.float32))
        self.work, self.rated = Work(torch.bfloat16), False
        self.about = {"imitates": "trl's SFTTrainer as it comes"}
        head = find_head(self.model)
        if isinstance(head, str):
            raise RuntimeError(head)
        self._head = head

    def enter(self, setting: Setting) -> None:
        """See `Contender`; blocks run again whatever the setting says."""
        _checkpoint(self.model, on=True)
        self._layout = _lay_out(setting, packed=False)
        fill_adapter(trained(self.model))
        self.optimizer = _plain_optimizer(self.model)

    def prepare(self, documents: Sequence[Example]) -> Any:
        """See `Contender`."""
        return make_update(documents, self._layout)

    def step(self, prepared: Any) -> float:
        """See `Contender`."""
        return _update(self.model, self.optimizer, self._accumulate(prepared))

    def read(self, documents: Sequence[Example]) -> Reading:
        """See `Contender`."""
        loss = self._accumulate(self.prepare(documents))
        return Reading(float(loss), take_gradients(self.model))

    def _accumulate(self, update: Any) -> torch.Tensor:
        self.model.train()
        device = self.model.device
        total = torch.zeros((), device=device)
        for batch in update.micro_batches:
            with torch.autocast(device.type, torch.bfloat16):
                loss = head_loss(self.model, batch.to(device), self._head)
            (loss / update.trained_tokens).backward()
            total += loss.detach() / update.trained_tokens
        return total


def pack_rows(documents: Sequence[Example], setting: Setting) -> list[dict[str, Any]]:
    """One row of all documents, told apart by positions, as for transformers' mask."""
    del setting
    ids = [torch.from_numpy(document.tokens).long() for document in documents]
    return [
        {
            "input_ids": torch.cat(ids)[None],
            "labels": torch.cat([labels_of(document) for document in documents])[None],
            "position_ids": torch.cat([torch.arange(len(each)) for each in ids])[None],
        }
    ]


def pack_bounded_rows(documents: Sequence[Example], setting: Setting) -> list[dict[str, Any]]:
    """The same row with the bounds of the documents, as for a kernel that asks for them."""
    (batch,) = pack_rows(documents, setting)
    lengths = [document.length for document in documents]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    longest = max(lengths)
    said = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    return [batch | said | {"max_length_q": longest, "max_length_k": longest}]


def pad_rows(documents: Sequence[Example], setting: Setting) -> list[dict[str, Any]]:
    """A document a row, as they come, padded to the longest of the batch."""
    batches, count = [], _padded_rows(setting)
    for first in range(0, len(documents), count):
        few = documents[first : first + count]
        ids = [torch.from_numpy(document.tokens).long() for document in few]
        batches.append(
            {
                "input_ids": pad_sequence(ids, batch_first=True),
                "labels": pad_sequence([labels_of(each) for each in few], True, IGNORED),
                "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], True),
            }
        )
    return batches


def read_alone(base: Frozen, documents: Sequence[Example]) -> Reading:
    """The reference: float32, each document alone, full logits; no padding, packing or mask."""
    model = add_lora(base.make(torch.float32))
    fill_adapter(trained(model))
    count = sum(document.trained_tokens for document in documents)
    total = 0.0
    for document in documents:
        ids = torch.from_numpy(document.tokens).long().to(base.device)
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        goals = labels_of(document)[1:].to(base.device)
        losses = cross_entropy(logits[:-1], goals, reduction="sum")
        (losses / count).backward()
        total += losses.item() / count
    return Reading(total, take_gradients(model))


def _switch_on(model: Any, *, packed: bool) -> dict[str, str]:
    """Turn on what a recipe's defaults do; what refused, and why."""
    refused = {"flat": varlen.enable(model) if packed else None, "lora": lora.enable(model)}
    count, why = norm.enable(model)
    found = {name: reason for name, reason in refused.items() if reason}
    if refused["flat"]:
        raise RuntimeError(refused["flat"])
    if packed:
        one = model.device.type == "cuda" and find_kernel() is not None
        found["attention"] = "one kernel" if one else "one call a document, or matrix products"
    return found | {"norm": f"{count}: {why}"}


def _lay_out(setting: Setting, *, packed: bool) -> Layout:
    rows, tokens = _padded_rows(setting), setting.tokens
    return Layout(packing=packed, micro_rows=rows, pad_id=0, flat=packed, micro_tokens=tokens)


def _padded_rows(setting: Setting) -> int:
    return max(1, setting.tokens // LONGEST)


def _checkpoint(model: Any, *, on: bool) -> None:
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def _plain_optimizer(model: Any) -> torch.optim.Optimizer:
    parameters = trained(model).values()
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def _update(model: Any, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    """Clip and apply; like this package's loop, it waits once for loss and size."""
    size = torch.nn.utils.clip_grad_norm_(trained(model).values(), MAX_GRAD_NORM)
    found = torch.stack([loss, size]).tolist()
    optimizer.step()
    optimizer.zero_grad()
    return float(found[0])


def _place(given: Any, model: Any) -> Any:
    return given.to(model.device) if isinstance(given, torch.Tensor) else given
