"""Adapter folders on disk, in the layout that peft and others read."""

from __future__ import annotations

import json
from copy import copy
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from peftkit.adapters.attach import trainable
from peftkit.adapters.expected import OWN_TYPES
from peftkit.adapters.folders import NOTE
from peftkit.adapters.head import read_heads
from peftkit.adapters.in_place import keep_before
from peftkit.adapters.several import acting, load_beside, use
from peftkit.adapters.starts import as_plain
from peftkit.adapters.task_fit import (
    heads_to_pass,
    left_behind,
    restore_head,
    shared_shapes,
    write_task,
)
from peftkit.adapters.tokens import token_rows
from peftkit.adapters.verify import (
    CONFIG_FILE,
    DELTA_FILE,
    WEIGHTS_FILE,
    verify_adapter,
)
from peftkit.adapters.weights_file import write_weights
from peftkit.adapters.whole import as_saved
from peftkit.base.tasks import new_parts, peft_task_of
from peftkit.base.tokens import added_rows
from peftkit.base.upstream import quiet
from peftkit.disk.durable import whole_folder
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from torch import Tensor

    from peftkit.base.locate import Origin

ROOM = 65_536
"""Bytes for the names in the weights and for the configuration."""


def save_adapter(
    model: Any,
    folder: Path,
    origin: Origin,
    *,
    method: str,
    tokenizer: Any = None,
    under: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapter that trains to `folder`, whole or not at all.

    Args:
        model: with it.
        folder: what was there goes.
        origin: of the base.
        method: the recipe's.
        tokenizer: to be saved beside it, if it is no longer the base's.
        under: what is to be noted of the adapter under it, where there is one.

    Raises:
        RunError: a weight is not finite.
        WriteError: it could not be written; an adapter that was there still is.
    """
    weights, config = _contents_of(model)
    needed = sum(w.numel() * w.element_size() for w in weights.values()) + ROOM
    needed += 0 if tokenizer is None else 2 * len(tokenizer.backend_tokenizer.to_str())
    with whole_folder(folder, needed) as building:
        if config is not None:
            write_weights(weights, building / WEIGHTS_FILE, {"format": "pt"})
            _save_config(config, building, origin)
        else:
            write_weights(weights, building / DELTA_FILE, {"format": "pt"})
            _save_own_config(model, building, origin, method)
        write_task(model, building)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(building))
        if under is not None:
            (building / NOTE).write_text(json.dumps(under, indent=2) + "\n", encoding="utf-8")


def load_adapter(
    model: Any, folder: Path, *, name: str = "default", base: str | None = None
) -> Any:
    """The model with the adapter of `folder` on it, checked before anything reads its weights.

    Args:
        model: a base.
        folder: of the adapter.
        name: what peft shall call it.
        base: name of the base, where it is known: an adapter made for another one is refused.
    """
    restore_head(model, folder)
    unused = left_behind(model, folder)
    facts = verify_adapter(folder, shared_shapes(model, folder), base=base, unused=unused)
    if not set(added_rows(model)) <= set(token_rows(folder)):
        raise InputError(f"`{folder}` has no rows for the tokens that were added to the base")
    if facts.peft_type in OWN_TYPES:
        return _load_changed(model, folder, unused)
    config: Any = PeftConfig.from_pretrained(str(folder))
    if config.task_type != peft_task_of(model):
        config.task_type = None  # else peft looks for what the model of that task has
    if heads := heads_to_pass(model, folder):
        config.exclude_modules = heads
    with quiet():
        found = PeftModel.from_pretrained(model, str(folder), adapter_name=name, config=config)
    read_heads(found, folder / WEIGHTS_FILE, name)
    return found.eval()


def _contents_of(model: Any) -> tuple[Mapping[str, Tensor], Any | None]:
    """All that the file holds, and peft's configuration of it, where the adapter is peft's.

    Beside what trained that is the random matrices of `vera`, and where LoRA started on weights.
    """
    if not isinstance(model, PeftModel):
        return trainable(model), None
    with quiet():
        found: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = model.peft_config[model.active_adapter]
    return as_plain(model, found, as_saved(config))


def _save_config(own: Any, folder: Path, origin: Origin) -> None:
    config: Any = copy(own)  # the model goes on as it is
    config.inference_mode = True
    if getattr(config, "prefix_projection", False):
        config.prefix_projection = False  # what is saved is what the network gives, not the network
    config.base_model_name_or_path = origin.name
    config.revision = origin.commit
    config.save_pretrained(str(folder))


def _save_own_config(model: Any, folder: Path, origin: Origin, method: str) -> None:
    values: dict[str, Any] = {
        "peft_type": method.upper(),
        "task_type": peft_task_of(model),
        "base_model_name_or_path": origin.name,
        "revision": origin.commit,
        "inference_mode": True,
    }
    if new := new_parts(model):
        values["modules_to_save"] = new
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _load_changed(model: Any, folder: Path, unused: Collection[str]) -> Any:
    found = load_file(folder / DELTA_FILE)
    weights = {name: tensor for name, tensor in found.items() if name not in unused}
    keep_before(model, weights)
    report = model.load_state_dict(weights, strict=False)
    if report.unexpected_keys:
        raise InputError(f"`{folder}` holds tensors the base lacks: `{report.unexpected_keys[0]}`")
    return model.eval()


def add_adapter(model: Any, folder: Path, number: int) -> Any:
    """The model with one more adapter of the same kind active beside those it has."""
    name = f"adapter{number}"
    load_beside(model, folder, name)
    use(model, [*acting(model), name])
    return model.eval()
