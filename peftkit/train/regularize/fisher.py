"""How much documents depend on each weight: the diagonal of their Fisher information.

`F = mean over documents of (∂ log p(document) / ∂w)²`, where a document's log-likelihood is that
of its mean trained token, as the run's own loss is. The square is of each document's own gradient:
that of a batch's mean gradient would be about a batch's size too small.

One document goes through the model at a time. The gradient of a linear layer's weight is the sum
over tokens of (gradient of its output) ⊗ (its input), so hooks give it for layers whose weight is
frozen, or packed in fewer bits, at two products' cost; what trains itself has its own gradient.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from peftkit.fast.refusals import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor
    from torch.nn import Module, Parameter

WEIGHT, BIAS = "weight", "bias"
"""What stands behind a layer's name in the result."""


def measure_fisher(
    model: Any,
    losses: Iterable[Callable[[], Tensor]],
    layers: Mapping[str, Module],
    parameters: Mapping[str, Parameter],
) -> dict[str, Tensor]:
    """The information of every weight: of layers as (out, in) and of their biases, in float32.

    Args:
        model: in the state in which it is asked, and not training.
        losses: for each document what computes its loss, which is minus its log-likelihood.
        layers: linear layers, frozen or not, by name.
        parameters: others that train, by name.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for loss in losses:
        gradients = _gradients_of(model, loss, layers, parameters)
        for name, gradient in gradients.items():
            squared = gradient.square_()
            total[name] = squared if name not in total else total[name].add_(squared)
        count += 1
    return {name: value.div_(count) for name, value in total.items()}


def _gradients_of(
    model: Any,
    loss: Callable[[], Tensor],
    layers: Mapping[str, Module],
    parameters: Mapping[str, Parameter],
) -> dict[str, Tensor]:
    """The gradient of one document's loss in every weight, forgotten by the model itself."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        if layers:
            hooks.enter_context(_reaching(model))
        for name, layer in layers.items():
            hooks.enter_context(_watching(layer, name, found))
        loss().backward()
    for name, parameter in parameters.items():
        if parameter.grad is None:
            found[name] = torch.zeros_like(parameter, dtype=torch.float32)
        else:
            found[name] = parameter.grad.float().clone()
    for parameter in model.parameters():
        parameter.grad = None
    return found


@contextmanager
def _reaching(model: Any) -> Iterator[None]:
    """Inside, gradients reach every layer, though no weight below it wants one."""

    def want(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return output if output.requires_grad else output.requires_grad_()

    handle = unwrap(model).get_input_embeddings().register_forward_hook(want)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _watching(layer: Module, name: str, found: dict[str, Tensor]) -> Iterator[None]:
    """Inside, each pass through the layer adds to the gradients of its weight and bias."""

    def watch(_layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen = inputs[0].detach().flatten(0, -2).float()

        def take(gradient: Tensor) -> None:
            slopes = gradient.flatten(0, -2).float()
            _add(found, f"{name}.{WEIGHT}", slopes.t() @ seen)
            _add(found, f"{name}.{BIAS}", slopes.sum(0))

        output.register_hook(take)

    handle = layer.register_forward_hook(watch)
    try:
        yield
    finally:
        handle.remove()


def _add(found: dict[str, Tensor], name: str, value: Tensor) -> None:
    found[name] = found[name].add_(value) if name in found else value
