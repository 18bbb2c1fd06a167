"""The Fisher information of a base on general text: computed once, and kept under all it is of."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file

from peftkit.adapters.attach import base_only
from peftkit.adapters.weights_file import write_weights
from peftkit.data.batch import collate_task
from peftkit.data.views import numbers_of
from peftkit.disk.cache import entry_folder, make_room, mark_used
from peftkit.disk.digest import sha256_of
from peftkit.disk.durable import whole_folder
from peftkit.fast.loss import each_loss
from peftkit.train.regularize.fisher import BIAS, WEIGHT, measure_fisher

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from peftkit.data.example import Example
    from peftkit.data.task import Task
    from peftkit.train.regularize.parts import Parts

FISHER, MANIFEST = "fisher.safetensors", "MANIFEST.json"


def find_fisher(
    model: Any, parts: Parts, rows: Sequence[Example], *, task: Task, pad_id: int, base: str
) -> dict[str, Tensor]:
    """The information of every weight that training changes, of the base as it is without it.

    Args:
        model: with its adapter, which is passed by.
        parts: what of it trains.
        rows: general text.
        task: what the base is asked of it.
        pad_id: of the tokenizer.
        base: key of all that is frozen.
    """
    folder = entry_folder("fisher", _digest(parts, rows, (base, task.name, model.device.type)))
    if _is_whole(folder):
        mark_used(folder)
        return load_file(folder / FISHER, device=str(model.device))
    found = _measure(model, parts, rows, task, pad_id)
    needed = sum(4 * value.numel() for value in found.values())
    if make_room(needed):
        with whole_folder(folder, needed) as building:
            write_weights(found, building / FISHER)
            manifest = {"sha256": sha256_of(building / FISHER)}
            (building / MANIFEST).write_text(json.dumps(manifest) + "\n", encoding="utf-8")
    return found


def _measure(
    model: Any, parts: Parts, rows: Sequence[Example], task: Task, pad_id: int
) -> dict[str, Tensor]:
    was_training = model.training
    model.eval()
    with base_only(model):
        found = measure_fisher(
            model,
            [partial(_loss_of, model, row, task, pad_id) for row in rows],
            {update.name: update.base for update in parts.updates},
            parts.others,
        )
    model.train(was_training)
    biased = {update.name for update in parts.updates if update.bias is not None}
    unused = {f"{update.name}.{BIAS}" for update in parts.updates if update.name not in biased}
    return {name: value for name, value in found.items() if name not in unused}


def _loss_of(model: Any, row: Example, task: Task, pad_id: int) -> Tensor:
    batch = collate_task([row], task, pad_id).to(model.device)
    return each_loss(model, batch).sum() / max(task.count(row), 1)


def _digest(parts: Parts, rows: Sequence[Example], facts: tuple[Any, ...]) -> str:
    """Digest of everything that the information follows from, to the last bit."""
    layers = [(update.name, WEIGHT, update.bias is not None) for update in parts.updates]
    others = [(name, tuple(p.shape), str(p.dtype)) for name, p in parts.others.items()]
    processor = (torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    made_by = (torch.__version__, transformers.__version__, *processor)
    total = hashlib.sha256(repr((facts, layers, others, made_by)).encode())
    total.update(numbers_of(rows, "content").astype("<u8").tobytes())
    return total.hexdigest()


def _is_whole(folder: Path) -> bool:
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(facts["sha256"] == sha256_of(folder / FISHER))
    except (OSError, ValueError, KeyError, TypeError):
        return False
