"""LoRA in the base's own number format: one autograd function a layer, float32 masters beside it.

peft keeps adapters in float32 and, on a bfloat16 base, casts every layer's input up to it and the
sum back down: the small products run at the slow rate and their inputs are kept twice. Here both
small matrices are cast down for the product and their gradients come back in float32; the frozen
product and the update share one output and one input gradient, so nothing of their size is added
up on its own. The update is added before anything else is, or small ones would be rounded away.

Only training goes this way. Evaluation and generation take peft's own, so a figure is that of the
adapter as others will load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.functional import dropout, linear
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def enable(model: Any) -> str | None:
    """Let every LoRA layer train this way; None when all can, else why none does."""
    layers = list(_layers(model))
    if not layers:
        return _say_what_instead(model)
    if reason := next((reason for layer in layers for reason in _refuse(layer)), None):
        return reason
    for layer in layers:
        layer.__class__ = BaseFormatLinear  # one class for all, so that what is compiled is shared
    return None


def _say_what_instead(model: Any) -> str:
    kinds = (type(m.base_layer).__name__ for m in model.modules() if isinstance(m, LoraLayer))
    found = next(kinds, None)
    return f"an adapted layer is a {found}" if found else "there is no LoRA on a linear layer"


def disable(model: Any) -> None:
    """Give every LoRA layer peft's own forward pass back."""
    for layer in _layers(model):
        if _is_ours(layer):
            layer.__class__ = LoraLinear


def is_on(model: Any) -> bool:
    """Whether LoRA layers train this way."""
    return any(_is_ours(layer) for layer in _layers(model))


def _is_ours(layer: Any) -> bool:
    return isinstance(layer, BaseFormatLinear)


def _layers(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, LoraLinear))


def _refuse(layer: Any) -> Iterator[str]:
    """Why a layer cannot, the plainest reason first; mostly nothing."""
    base, active = layer.base_layer, layer.active_adapters
    known = type(layer) in (LoraLinear, BaseFormatLinear)
    if not known or type(base) not in (nn.Linear, Conv1D):
        yield f"an adapted layer is a {type(base).__name__}"
    if len(active) != 1 or active[0] not in layer.lora_A:
        yield f"{len(active)} adapters are active at once"
        return
    small = (layer.lora_A[active[0]], layer.lora_B[active[0]])
    if active[0] in layer.lora_variant or any(type(each) is not nn.Linear for each in small):
        yield "it is a variant of LoRA"
    if any(each.bias is not None for each in small):
        yield "its updates have biases"
    if layer.merged:
        yield "the adapter is merged into the base"
    if any(parameter.requires_grad for parameter in base.parameters()):
        yield "an adapted layer trains itself"
    yield from _refuse_weights((base, *small))


def _refuse_weights(layers: Sequence[Any]) -> Iterator[str]:
    for each in layers:
        if each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each):
            yield "something watches or moves an adapted layer"
        if type(each.weight.data) is not torch.Tensor or each.weight.dtype not in DTYPES:
            yield f"the weight of an adapted layer is {each.weight.dtype}, sharded or packed"


class BaseFormatLinear(LoraLinear):
    """peft's layer, except while it trains."""

    def forward(self, x: Tensor, *args: Any, **settings: Any) -> Tensor:
        """The layer's output with its update."""
        plain = args or settings or self.disable_adapters or self.merged
        if plain or not (self.training and torch.is_grad_enabled()):
            return super().forward(x, *args, **settings)
        (name,) = self.active_adapters
        drop = self.lora_dropout[name]
        seen = dropout(x, drop.p) if isinstance(drop, nn.Dropout) and drop.p else None
        base = self.base_layer
        weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
        small = (self.lora_A[name].weight, self.lora_B[name].weight)
        updated: Tensor = UpdatedLinear.apply(  # type: ignore[no-untyped-call]
            x, seen, weight, base.bias, *small, self.scaling[name]
        )
        return updated


class UpdatedLinear(Function):
    """`x W' + bias + scale · seen A' B'`, where `seen` is x unless dropout made it another."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd wants them one by one
        ctx: Any,
        x: Tensor,
        seen: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        """See above."""
        inputs = _as_rows(x if seen is None else seen)
        narrow, wide = down.to(x.dtype), up.to(x.dtype)
        middle = linear(inputs, narrow)
        result = linear(x, weight, bias)
        _as_rows(result).addmm_(middle, wide.t(), alpha=scale)
        ctx.save_for_backward(inputs, middle, weight, narrow, wide)
        ctx.scale, ctx.dropped = scale, seen is not None
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, seen, and in float32 of both small matrices; the base is frozen."""
        inputs, middle, weight, narrow, wide = ctx.saved_tensors
        of_x, of_seen, _, _, of_down, of_up, _ = ctx.needs_input_grad
        rows = _as_rows(above)
        slopes = torch.mm(rows, wide).mul_(ctx.scale)
        x_gradient = seen_gradient = None
        if of_x:
            x_gradient = torch.mm(rows, weight)
            if not ctx.dropped:
                x_gradient.addmm_(slopes, narrow)
            x_gradient = x_gradient.view(*above.shape[:-1], -1)
        if of_seen:
            seen_gradient = torch.mm(slopes, narrow).view(*above.shape[:-1], -1)
        down_gradient = torch.mm(slopes.t(), inputs).float() if of_down else None
        up_gradient = None
        if of_up:
            up_gradient = torch.mm(rows.t(), middle).float().mul_(ctx.scale)
        return x_gradient, seen_gradient, None, None, down_gradient, up_gradient, None


def _as_rows(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])
