"""Why a model's backbone and head cannot be run apart, in words for the one who trains it.

What a family does between its backbone and the logits is read from the names that its `forward`
mentions: a model whose code mentions a name that is not known here is refused, so a new family is
slow before it is wrong. What names cannot show (a constant, another order) is left to `check_head`.
"""

from __future__ import annotations

import inspect
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

SCALES = {"logit_scale", "lm_head_multiplier", "logits_scaling"}
SOFTCAPS = {"final_logit_softcapping", "logits_soft_cap"}
HARMLESS = {
    *("config", "text_config", "get_text_config", "vocab_size", "return_dict"),
    *("slice_logits_to_keep", "isinstance", "int", "slice", "shape", "view"),
    *("to", "device", "dtype", "weight", "float", "contiguous"),
    *("torch", "nn", "functional", "tanh", "loss_function", "CrossEntropyLoss"),
    *("load_balancing_loss_func", "router_aux_loss_coef", "output_router_logits"),
    *("num_experts", "num_experts_per_tok", "router_logits"),
    *("last_hidden_state", "hidden_states", "attentions", "cross_attentions"),
    *("past_key_values", "cache_params", "state", "shared_kv_states"),
    *("image_hidden_states", "audio_hidden_states"),
}
"""Names in a `forward` that leave the logits as they are; classes of outputs come on top."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unwrap(model: Any) -> Any:
    """The transformers model below peft's wrapper, adapters in place."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def refuse_shared_rows(model: Any) -> str | None:
    """Why documents cannot share a row, whatever the base is, if so."""
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            return f"the adapter stands before one text a row ({config.peft_type.value})"
    return None


def refusals(model: Any) -> Iterator[str]:
    """Why its backbone and head cannot be run apart, the plainest reason first; mostly nothing."""
    plain = unwrap(model)
    if not isinstance(plain, PreTrainedModel):
        yield f"a {type(plain).__name__} is not a model of transformers or peft"
        return
    if isinstance(model, PeftModel):
        yield from _refuse_adapter(model)
    if plain.config.is_encoder_decoder:
        yield "it has an encoder and a decoder"
    if plain.get_output_embeddings() is None:
        yield "it has no language-modeling head"
        return
    yield from _refuse_head(plain.get_output_embeddings())
    yield from _refuse_parts(plain)
    yield from _refuse_forward(plain)


def forward_names(module: Any) -> set[str]:
    """Every name that the code of a module's `forward` mentions."""
    return set(_mentioned(inspect.unwrap(type(module).forward).__code__))


def _refuse_adapter(model: Any) -> Iterator[str]:
    for config in model.peft_config.values():
        if config.is_prompt_learning:
            yield f"its adapter puts virtual tokens before the text ({config.peft_type.value})"
            return
        if getattr(config, "alora_invocation_tokens", None):
            yield "its adapter looks for invocation tokens in the text (activated LoRA)"
    if type(model.base_model).forward is not BaseTuner.forward:
        yield f"its adapter wraps the whole forward pass ({type(model.base_model).__name__})"


def _refuse_head(head: Any) -> Iterator[str]:
    kind = type(head)
    if kind.__module__.startswith("peft."):
        yield "an adapter sits on its head"
    elif kind is not nn.Linear:
        yield f"its head is a {kind.__name__}, not a plain linear layer"
    elif any(parameter.requires_grad for parameter in head.parameters()):
        yield "its head trains"
    elif type(head.weight.data) is not torch.Tensor or head.weight.is_meta:
        yield "the weight of its head is sharded or offloaded"
    elif head.weight.ndim != 2 or head.weight.dtype not in DTYPES:
        yield f"the weight of its head is {head.weight.ndim}-dimensional {head.weight.dtype}"


def _refuse_parts(plain: Any) -> Iterator[str]:
    backbone, head = plain.base_model, plain.get_output_embeddings()
    if {id(child) for child in plain.children()} != {id(backbone), id(head)}:
        yield "it is not made of just a backbone and a head"
    elif not _returns_hidden(backbone):
        yield "its backbone does not say that it returns `last_hidden_state`"
    for module in (plain, head):
        placed = hasattr(module, "_hf_hook")  # by accelerate, which moves tensors and no more
        if module._forward_hooks or module._forward_pre_hooks:
            yield f"a hook watches its {type(module).__name__}"
        elif "forward" in vars(module) and not placed:
            yield f"the forward pass of its {type(module).__name__} has been replaced"


def _refuse_forward(plain: Any) -> Iterator[str]:
    names = {name for name in forward_names(plain) if "Output" not in name}
    known = HARMLESS | SCALES | SOFTCAPS | dict(plain.named_children()).keys()
    if unknown := sorted(names - known):
        yield f"its family is unknown: its forward pass mentions `{'`, `'.join(unknown)}`"
    config = plain.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        yield "its router has a loss of its own (`output_router_logits`)"
    if not plain.config.return_dict:
        yield "its outputs are tuples (`return_dict`)"


def _returns_hidden(backbone: Any) -> bool:
    forward = inspect.unwrap(type(backbone).forward)
    outputs = [forward.__globals__.get(name) for name in _mentioned(forward.__code__)]
    fields: list[Any] = [getattr(output, "__dataclass_fields__", ()) for output in outputs]
    return any("last_hidden_state" in names for names in fields)


def _mentioned(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _mentioned(constant)
