"""Where LoRA starts other than at random: in the base's weights, its inputs or its rounding.

PiSSA and OLoRA begin with an update that is not zero and take it out of the base's weights. Here
the base stays as it is, and the same start is taken out of the update (`WithoutStart`): the same
function and the same gradients, but the base loses no digit to rounding, needs no second copy to
be asked again, and the difference to it is what trained and what is saved, as plain LoRA of twice
the rank. Starts follow from the base alone, so a resumed run finds them again.
"""

from __future__ import annotations

from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from peftkit.base.quantize import plain_weight
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

ON_WEIGHTS = ("pissa", "olora")
"""Variants whose start is not zero, and is subtracted."""
ADAPTER = "default"
"""What peft calls the one adapter of a fresh model."""
MOST_TOKENS = 512
"""Of one document that a start is taken from."""
SPARE = 32
"""Directions kept beside those that are wanted, because one that is narrow now may grow."""
NEGLIGIBLE = 1e-6
"""Directions whose inputs are this much shorter than the longest are those of rounding."""


class WithoutStart(LoraVariant):
    """LoRA whose update counts from where it started."""

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: Tensor, result: Tensor, **_settings: Any
    ) -> Tensor:
        """The layer's output; equal products cancel to the last bit before the first step."""
        inputs = module.lora_dropout[active_adapter](x)
        update = module.lora_B[active_adapter](module.lora_A[active_adapter](inputs))
        start = linear(linear(inputs, module.start_down), module.start_up)
        moved: Tensor = result + (update - start) * module.scaling[active_adapter]
        return moved


@torch.no_grad()
def start_on_weights(model: Any, variant: str) -> None:
    """Start every update on its layer's own weights: `pissa` or `olora`."""
    find = {"pissa": principal_factors, "olora": orthonormal_factors}[variant]
    for _, layer in _layers(model):
        weight = plain_weight(layer.get_base_layer()).detach().float()
        turned = weight.t() if layer.fan_in_fan_out else weight
        down, up = find(turned, layer.r[ADAPTER], layer.scaling[ADAPTER])
        layer.lora_A[ADAPTER].weight.copy_(down)
        layer.lora_B[ADAPTER].weight.copy_(up)
        layer.register_buffer("start_down", down.contiguous(), persistent=False)
        layer.register_buffer("start_up", up.contiguous(), persistent=False)
        layer.lora_variant[ADAPTER] = WithoutStart()


def principal_factors(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """`A` and `B` whose scaled product is the nearest to `weight` of this rank (PiSSA)."""
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    roots = (sizes[:rank] / scale).sqrt()
    return roots[:, None] * right[:rank], left[:, :rank] * roots


def orthonormal_factors(weight: Tensor, rank: int, _scale: float) -> tuple[Tensor, Tensor]:
    """`A` and `B` from the first columns of `weight`, made orthonormal (OLoRA)."""
    basis, rest = torch.linalg.qr(weight)
    return rest[:rank], basis[:, :rank]


@torch.no_grad()
def start_on_inputs(model: Any, documents: Sequence[Sequence[int]]) -> None:
    """Start every `A` on the directions in which its layer's inputs vary most (EVA)."""
    layers = dict(_layers(model))
    seen = {name: Spread(layer.r[ADAPTER] + SPARE) for name, layer in layers.items()}
    device = next(model.parameters()).device
    with _watched(layers, seen), model.disable_adapter():
        for document in documents:
            ids = [int(token) for token in document[:MOST_TOKENS]]
            model(torch.tensor([ids], device=device))
    for name, layer in layers.items():
        found = seen[name].directions[: layer.r[ADAPTER]]
        layer.lora_A[ADAPTER].weight[: len(found)].copy_(found)


@dataclass
class Spread:
    """The directions in which rows vary most, kept up to date as rows come in."""

    most: int
    """Directions that are kept; each further one costs a row of memory."""
    rows: int = 0
    mean: Tensor | None = None
    kept: Tensor | None = None
    """Directions, each as long as the rows spread along it."""

    def add(self, rows: Tensor) -> None:
        """Take further rows in (Ross et al., 2008: their mean moves, and counts as a row)."""
        mean = rows.mean(0)
        parts, both = [rows - mean], self.rows + len(rows)
        if self.mean is not None and self.kept is not None:
            moved = (self.rows * len(rows) / both) ** 0.5 * (self.mean - mean)
            parts += [self.kept, moved[None]]
            mean = (self.rows * self.mean + len(rows) * mean) / both
        _, sizes, right = torch.linalg.svd(torch.cat(parts), full_matrices=False)
        self.kept = (sizes[:, None] * right)[: self.most]
        self.mean, self.rows = mean, both

    @property
    def directions(self) -> Tensor:
        """Orthonormal rows, the widest spread first; fewer where the rows span fewer."""
        if self.kept is None:
            return torch.empty(0)
        sizes = self.kept.norm(dim=1)
        real = sizes > NEGLIGIBLE * sizes[0]
        directions: Tensor = self.kept[real] / sizes[real, None]
        return directions


@contextmanager
def _watched(layers: Mapping[str, Any], seen: Mapping[str, Spread]) -> Iterator[None]:
    """Inside, each layer's inputs are taken in."""

    def watch(name: str) -> Any:
        def take(_: Any, inputs: tuple[Tensor, ...]) -> None:
            seen[name].add(inputs[0].flatten(0, -2).float())

        return take

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def correct_rounding(original: Tensor, held: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`A` and `B` that bring `held` as near to `original` as this rank can (LoftQ, one step).

    Args:
        original: weights of a layer before they were rounded, (out, in).
        held: the same weights as the base holds them, brought back to full precision.
        rank: of the correction; divide one factor by the layer's scale before use.
    """
    return principal_factors(original.float() - held.float(), rank, 1.0)


@torch.no_grad()
def start_on_rounding(model: Any, originals: Iterable[tuple[str, Tensor]]) -> None:
    """Start every update on what its layer lost when it was quantized: `loftq`.

    Args:
        model: a quantized base with a fresh adapter.
        originals: name and numbers of each tensor of the base's files.

    Raises:
        InputError: the files lack the weight of an adapted layer, or hold it packed already.
    """
    left = dict(_layers(model))
    for name, original in originals:
        module, _, kind = name.rpartition(".")
        found = [path for path in left if f".{path}".endswith(f".{module}")]
        if kind != "weight" or not found or not original.is_floating_point():
            continue
        layer = left.pop(found[0])
        base = layer.get_base_layer()
        turned = getattr(base, "source_cls", None) is Conv1D
        wanted = (original.t() if turned else original).to(base.weight.device)
        down, up = correct_rounding(wanted, plain_weight(base), layer.r[ADAPTER])
        layer.lora_A[ADAPTER].weight.copy_(down)
        layer.lora_B[ADAPTER].weight.copy_(up / layer.scaling[ADAPTER])
    if left:
        raise InputError(
            f"the base's files have no unpacked weight of {len(left)} adapted layers, e.g. "
            f"`{next(iter(left))}`, so loftq cannot know what was rounded away",
            hint="`--set adapter.variant=plain`",
        )


def as_plain(
    model: Any, weights: Mapping[str, Tensor], config: Any
) -> tuple[dict[str, Tensor], Any]:
    """Weights and configuration of plain LoRA on the base, with any start taken out.

    `B A - B0 A0` is one update of twice the rank; twice the alpha keeps its scale.
    """
    plain = dict(weights)
    starts = {name: layer for name, layer in _layers(model) if hasattr(layer, "start_down")}
    for name, layer in starts.items():
        down, up = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        plain[down] = torch.cat([weights[down], layer.start_down])
        plain[up] = torch.cat([weights[up], -layer.start_up], dim=1)
    if not starts:
        return plain, config
    told = copy(config)
    told.r, told.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    told.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    told.alpha_pattern = {name: 2 * alpha for name, alpha in config.alpha_pattern.items()}
    return plain, told


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    return ((n, module) for n, module in model.named_modules() if isinstance(module, LoraLayer))
