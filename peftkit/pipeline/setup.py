"""What every command that touches a model begins with: where the base is, what the data holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from peftkit.adapters.attach import attach, trainable
from peftkit.base.load import load_tokenizer, settle_dtype, shape_of, stop_ids
from peftkit.base.locate import Origin, digest, locate
from peftkit.base.machine import choose_device
from peftkit.base.memory import Shape, shape_of_config
from peftkit.base.targets import first_trained_block
from peftkit.data.formats import Encoder
from peftkit.data.prepare import Data, prepare_data
from peftkit.fast.refusals import unwrap
from peftkit.recipe.sections.adapter import IN_PLACE

if TYPE_CHECKING:
    from peftkit.recipe.schema import Recipe
    from peftkit.recipe.sections.base import BaseSection
    from peftkit.recipe.sections.data import DataSection


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything known before the weights are read."""

    origin: Origin
    digest: str
    device: torch.device
    base: BaseSection
    """The recipe's, with its number format settled."""
    why_dtype: str
    tokenizer: Any
    stops: frozenset[int]
    data: Data

    @property
    def dtype(self) -> str:
        """The name of the number format of the base."""
        return self.base.dtype

    @property
    def pad_id(self) -> int:
        """An id for positions that nothing looks at."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def encoder(self, section: DataSection) -> Encoder:
        """How this run's rows become tokens."""
        return Encoder(self.tokenizer, self.stops, section.max_length, section.too_long)


def set_up(recipe: Recipe, *, dtype: str | None = None) -> Setup:
    """Find the base, read its tokenizer, and turn the data into examples.

    A number format that was settled before, as `lock.json` says it, stays settled.
    """
    origin = locate(recipe.base)
    tokenizer = load_tokenizer(origin)
    stops = stop_ids(origin, tokenizer)
    device = choose_device()
    frozen = recipe.adapter.method not in IN_PLACE
    base, why = settle_dtype(recipe.base, origin, device, frozen=frozen)
    if dtype and recipe.base.dtype == "auto":
        base = base.model_copy(update={"dtype": dtype})
    return Setup(
        origin=origin,
        digest=digest(origin, weights=recipe.base.weights == "pretrained"),
        device=device,
        base=base,
        why_dtype=why,
        tokenizer=tokenizer,
        stops=stops,
        data=prepare_data(recipe.data, tokenizer, stops),
    )


@dataclass(frozen=True, slots=True)
class Sizes:
    """How big the base is and how much of it trains."""

    shape: Shape
    trainable: int
    adapted_blocks: int
    """Blocks from the first one with a parameter that trains: all where one lies below them."""
    window: int | None = None
    """Most places the base was made for, where its config says so."""

    @property
    def share(self) -> float:
        """Trainable parameters as a share of all, the adapter's included."""
        own = self.shape.parameters
        return self.trainable / max(own, self.trainable)


def measure_sizes(recipe: Recipe, origin: Origin) -> Sizes:
    """Sizes read off a model without memory: no weights are loaded for it."""
    model = shape_of(origin)
    base_parameters = sum(p.numel() for p in model.parameters())
    shape = shape_of_config(model.config, base_parameters)
    model.requires_grad_(requires_grad=False)
    with torch.device("meta"):
        adapted = attach(model, recipe.adapter, seed=recipe.seed)
    parameters = trainable(adapted)
    blocks = shape.layers - first_trained_block(adapted, unwrap(adapted))
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return Sizes(shape, sum(p.numel() for p in parameters.values()), blocks, window)
