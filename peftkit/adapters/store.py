"""Adapter folders on disk, in the layout that peft and others read."""

from __future__ import annotations

import json
from copy import copy
from typing import TYPE_CHECKING, Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from peftkit.adapters.attach import trainable
from peftkit.adapters.expected import OWN_TYPES
from peftkit.adapters.in_place import keep_before
from peftkit.adapters.verify import module_shapes, verify_adapter
from peftkit.adapters.weights_file import write_weights
from peftkit.base.upstream import quiet
from peftkit.disk.durable import whole_folder
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from peftkit.base.locate import Origin

PEFT_WEIGHTS = "adapter_model.safetensors"
CHANGED_WEIGHTS = "delta.safetensors"
CONFIG = "adapter_config.json"
ROOM = 65_536
"""Bytes for the names in the weights and for the configuration."""


def save_adapter(model: Any, folder: Path, origin: Origin, *, method: str) -> None:
    """Write the adapter to `folder`, whole or not at all.

    Raises:
        RunError: a weight is not finite.
        WriteError: it could not be written; an adapter that was there still is.
    """
    weights = _weights_of(model)
    needed = sum(w.numel() * w.element_size() for w in weights.values()) + ROOM
    with whole_folder(folder, needed) as building:
        if isinstance(model, PeftModel):
            write_weights(weights, building / PEFT_WEIGHTS, {"format": "pt"})
            _save_config(model, building, origin)
        else:
            write_weights(weights, building / CHANGED_WEIGHTS, {"format": "pt"})
            _save_own_config(building, origin, method)


def load_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter of `folder` on it, checked before anything reads its weights."""
    facts = verify_adapter(folder, module_shapes(model))
    if facts.peft_type in OWN_TYPES:
        return _load_changed(model, folder)
    with quiet():
        return PeftModel.from_pretrained(model, str(folder)).eval()


def _weights_of(model: Any) -> Mapping[str, Tensor]:
    """All that the file holds: what trained, and with it the random matrices of `vera`."""
    if not isinstance(model, PeftModel):
        return trainable(model)
    found: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def _save_config(model: PeftModel, folder: Path, origin: Origin) -> None:
    config: Any = copy(model.peft_config[model.active_adapter])  # the model goes on as it is
    config.inference_mode = True
    if getattr(config, "prefix_projection", False):
        config.prefix_projection = False  # what is saved is what the network gives, not the network
    config.base_model_name_or_path = origin.name
    config.revision = origin.commit
    config.save_pretrained(str(folder))


def _save_own_config(folder: Path, origin: Origin, method: str) -> None:
    values = {
        "peft_type": method.upper(),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": origin.name,
        "revision": origin.commit,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _load_changed(model: Any, folder: Path) -> Any:
    weights = load_file(folder / CHANGED_WEIGHTS)
    keep_before(model, weights)
    report = model.load_state_dict(weights, strict=False)
    if report.unexpected_keys:
        raise InputError(f"`{folder}` holds tensors the base lacks: `{report.unexpected_keys[0]}`")
    return model.eval()


def add_adapter(model: Any, folder: Path, number: int) -> Any:
    """The model with one more adapter of the same kind active beside those it has."""
    if not isinstance(model, PeftModel):
        raise InputError(f"`{folder}` cannot be added: the first adapter changes the base itself")
    facts = verify_adapter(folder, module_shapes(model))
    first: Any = model.peft_config[model.active_adapters[0]]
    kind = first.peft_type.value
    if first.is_prompt_learning:
        raise InputError(
            f"`{folder}` cannot be added: what the first adapter puts before the text ({kind}) "
            "leaves no place for another's"
        )
    if facts.peft_type != kind:
        raise InputError(
            f"`{folder}` cannot be added: it is of kind {facts.peft_type}, the first of {kind}"
        )
    _refuse_another_place(first, folder)
    name = f"adapter{number}"
    with quiet():
        model.load_adapter(str(folder), adapter_name=name)
    tuner: Any = model.base_model
    tuner.set_adapter([*model.active_adapters, name])
    return model.eval()


def _refuse_another_place(first: Any, folder: Path) -> None:
    """Say that one adapter wraps what the other goes into: peft would leave it out in silence."""
    own = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("variant")
    both = {own, getattr(first, "variant", None)}
    if "parallel" in both and len(both) > 1:
        raise InputError(
            f"`{folder}` cannot be added: one of the two adapters stands beside the MLP and the "
            "other after it"
        )
