"""The plain arms: transformers and peft as they come, and a loop that anyone would write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from arm import LEARNING_RATE, MAX_GRAD_NORM, PACKED_WIDTH, PADDED_ROWS, Reading, Timed, Work
from clock import cpu_seconds
from peft import LoraConfig, get_peft_model
from shapes import RANK, Bases, fill_adapter
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from peftkit.data.example import IGNORED
from peftkit.data.packing import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peftkit.data.example import Example

    Batches = Callable[[Sequence[Example]], list[dict[str, torch.Tensor]]]


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""What `all-linear` means in a Llama, spelled out because peft then takes single layers too."""


class PlainArm:
    """A loop over batches with labels, the model's own loss, and AdamW."""

    def __init__(self, bases: Bases, dtype: torch.dtype, batches: Batches) -> None:
        self.model = add_lora(bases.make(dtype))
        self.work = Work(dtype)
        self._batches = batches
        self.reset()

    def reset(self) -> None:
        """See `Arm`."""
        parameters = trained(self.model)
        fill_adapter(parameters)
        self._optimizer = torch.optim.AdamW(
            parameters.values(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )

    def read(self, documents: Sequence[Example]) -> Reading:
        """See `Arm`."""
        return Reading(self._accumulate(documents), take_gradients(self.model))

    def step(self, documents: Sequence[Example]) -> Timed:
        """See `Arm`."""
        started = cpu_seconds()
        loss = self._accumulate(documents)
        torch.nn.utils.clip_grad_norm_(trained(self.model).values(), MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return Timed(cpu_seconds() - started, loss)

    def _accumulate(self, documents: Sequence[Example]) -> float:
        self.model.train()
        count = torch.tensor(sum(document.trained_tokens for document in documents))
        total = 0.0
        for batch in self._batches(documents):
            loss = self.model(**batch, num_items_in_batch=count, use_cache=False).loss
            loss.backward()
            total += loss.item()
        return total


def read_one_by_one(
    bases: Bases, documents: Sequence[Example], layers: list[int] | None
) -> Reading:
    """The reference: float32, each document alone, full logits; no padding, packing or mask."""
    model = add_lora(bases.make(torch.float32), layers)
    fill_adapter(trained(model))
    count = sum(document.trained_tokens for document in documents)
    total = 0.0
    for document in documents:
        ids = torch.from_numpy(document.tokens).long()
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        losses = cross_entropy(logits[:-1], labels_of(document)[1:], reduction="sum")
        (losses / count).backward()
        total += losses.item() / count
    return Reading(total, take_gradients(model))


def add_lora(model: Any, layers: list[int] | None = None) -> Any:
    """The model with peft's own LoRA on every linear layer of the blocks."""
    return get_peft_model(model, lora_config(layers))


def lora_config(layers: list[int] | None = None) -> LoraConfig:
    """Rank 16 on every linear layer, scaled by 2, no dropout."""
    return LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=0.0,
        target_modules=LINEAR,
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )


def pad_documents(documents: Sequence[Example]) -> list[dict[str, torch.Tensor]]:
    """Batches of documents as they come, one a row, padded to the longest of the batch."""
    batches = []
    for first in range(0, len(documents), PADDED_ROWS):
        few = documents[first : first + PADDED_ROWS]
        ids = [torch.from_numpy(document.tokens).long() for document in few]
        batches.append(
            {
                "input_ids": pad_sequence(ids, batch_first=True),
                "labels": pad_sequence([labels_of(d) for d in few], True, IGNORED),
                "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], True),
            }
        )
    return batches


def pack_documents(documents: Sequence[Example]) -> list[dict[str, torch.Tensor]]:
    """Rows of several documents, told apart by `position_ids`; transformers makes a dense mask."""
    rows = pack([document.length for document in documents], PACKED_WIDTH)
    batches = []
    for row in rows:
        few = [documents[index] for index in row]
        ids = torch.cat([torch.from_numpy(document.tokens).long() for document in few])
        batches.append(
            {
                "input_ids": ids[None],
                "labels": torch.cat([labels_of(document) for document in few])[None],
                "position_ids": torch.cat([torch.arange(d.length) for d in few])[None],
            }
        )
    return batches


def labels_of(document: Example) -> torch.Tensor:
    """Its tokens where they carry loss, not shifted; `IGNORED` elsewhere."""
    tokens = torch.from_numpy(document.tokens).long()
    return tokens.masked_fill(~torch.from_numpy(document.trained), IGNORED)


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def take_gradients(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the gradients, by name; none is left behind."""
    taken = {name: p.grad.float().clone() for name, p in trained(model).items()}
    model.zero_grad(set_to_none=True)
    return taken
