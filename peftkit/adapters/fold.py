"""Fold an adapter into the base: a plain model with the adapter's change in its own weights.

peft would also fold into a base in 4 or 8 bits, by rounding the sum again, and most of an adapter
is smaller than such a step. So the base is unpacked first, and what each way costs is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from peftkit.adapters.head import head_of
from peftkit.adapters.in_place import BEFORE
from peftkit.base.quantize import keep_layout, packed_layers, requantize, restore_classes, unpack
from peftkit.base.upstream import quiet
from peftkit.errors import InputError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

ADAPTED = ".base_layer"
"""How peft names the layer below an adapter."""
OF_THEIR_OWN = {"BOTTLENECK": "a small network beside the base, which no weight of it can hold"}
"""Kinds of adapters that compute what no weight does, and what they are."""


@dataclass(frozen=True, slots=True)
class Folded:
    """A plain model, and how far two ways of folding are from the model with its adapter."""

    model: Any
    error: float
    """Relative error of the logits of `model`."""
    requantized_error: float
    """The same, had its adapted layers been packed again as they were."""


def fold(model: Any) -> Any:
    """The plain model with its adapter folded in; methods that train in place are folded already.

    Args:
        model: with an adapter, which is used up.

    Raises:
        InputError: the adapter or the base is of a kind that cannot be folded.
        RunError: a folded weight would not be finite.
    """
    if head_of(model.get_base_model() if isinstance(model, PeftModel) else model) is not None:
        raise InputError(
            "the head has a layer that its family knows nothing of: folded, it would load without",
            hint="keep the adapter, or train with `--set adapter.hidden=0`",
        )
    if not isinstance(model, PeftModel):
        model.__dict__.pop(BEFORE, None)
        return model
    _refuse(model)
    if packed_layers(model):
        raise InputError(
            "the base is packed in 4 or 8 bits: to fold into it would round its weights once more, "
            "and most of the adapter away",
            hint="`fold_dequantized` of `peftkit.adapters.fold` unpacks it first, into 16 or 32",
        )
    return _merge(model)


def fold_dequantized(model: Any, ids: Tensor, *, dtype: torch.dtype | None = None) -> Folded:
    """The plain model of an adapter on a packed base, unpacked first, and what that costs.

    Args:
        model: with an adapter on a base in 4 or 8 bits, which is used up.
        ids: token ids that the errors are measured on, rows of one length.
        dtype: of the folded weights; that of the base where none is given.

    Raises:
        InputError: the adapter cannot be folded, or the base is not packed.
        RunError: a folded weight would not be finite.
    """
    if not isinstance(model, PeftModel) or not packed_layers(model):
        raise InputError(
            "there is no adapter on a base in 4 or 8 bits to fold",
            hint="`fold` of `peftkit.adapters.fold` folds into a base as it is",
        )
    _refuse(model)
    keep_layout(model)
    wanted = _logits(model, ids)
    packed = dict(_adapted_layers(model))
    adapters = dict(_take_adapters(model))
    unpack(model.get_base_model(), dtype)  # first: peft takes no `ia3` off what is packed
    folded = _merge(_put_on(model.unload(), adapters))
    error = _relative_error(_logits(folded, ids), wanted)
    requantized = _requantized_error(folded, packed, ids, wanted)
    return Folded(restore_classes(folded), error, requantized)


def _refuse(model: PeftModel) -> None:
    """Say why an adapter cannot be folded into any base."""
    for name in model.active_adapters:
        config: Any = model.peft_config[name]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if config.is_prompt_learning:
            why = "it puts virtual tokens before the text, and no weight of the base can hold them"
        elif kind in OF_THEIR_OWN:
            why = f"it is {OF_THEIR_OWN[kind]}"
        elif not hasattr(model.base_model, "merge_and_unload"):
            why = "peft knows no way to"
        elif getattr(config, "lora_bias", False):
            why = "its updates have biases, which the layers of the base may lack"
        else:
            continue
        raise InputError(
            f"an adapter of kind {kind} cannot be folded into the base: {why}",
            hint="use it beside the base: `peftkit generate RUN` does",
        )


def _merge(model: Any) -> Any:
    try:
        with quiet():
            folded: Any = model.merge_and_unload(safe_merge=True)
    except ValueError as problem:  # what peft raises for a sum that is not finite
        raise RunError(f"the adapter cannot be folded: {problem}") from None
    return folded.requires_grad_(requires_grad=False).eval()


def _adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Packed layers below the adapter, by their names in the plain model."""
    for name, layer in packed_layers(model.get_base_model()).items():
        if name.endswith(ADAPTED):
            yield name.removesuffix(ADAPTED), layer


def _take_adapters(model: PeftModel) -> Iterator[tuple[str, tuple[Any, dict[str, Tensor]]]]:
    """Configuration and weights of each active adapter, by name."""
    for name in model.active_adapters:
        found = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        yield name, (model.peft_config[name], found)


def _put_on(plain: Any, adapters: Mapping[str, tuple[Any, dict[str, Tensor]]]) -> PeftModel:
    """The plain model with adapters that it had when it was packed."""
    (first, (config, _)), *others = adapters.items()
    with quiet():
        model = PeftModel(plain, config, adapter_name=first)
        for name, (other, _) in others:
            model.add_adapter(name, other)
        for name, (_, weights) in adapters.items():
            set_peft_model_state_dict(model, weights, adapter_name=name)
    tuner: Any = model.base_model
    tuner.set_adapter(list(adapters))
    return model


@torch.inference_mode()
def _logits(model: Any, ids: Tensor) -> Tensor:
    device = next(model.parameters()).device
    found: Tensor = model.eval()(ids.to(device)).logits.float()
    return found


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _requantized_error(
    folded: Any, packed: Mapping[str, Any], ids: Tensor, wanted: Tensor
) -> float:
    """The error of weights that were packed again after folding, as peft would do it."""
    kept = {}
    for name, layer in packed.items():
        weight = folded.get_submodule(name).weight
        kept[name] = weight.data
        weight.data = requantize(weight.data, layer)
    try:
        return _relative_error(_logits(folded, ids), wanted)
    finally:
        for name, data in kept.items():
            folded.get_submodule(name).weight.data = data
