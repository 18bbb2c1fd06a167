"""What every command that touches a model begins with: where the base is, what the data holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from peftkit.adapters.attach import attach, trainable
from peftkit.adapters.stack import Below, find_below
from peftkit.base.load import load_tokenizer, pad_id_of, settle_dtype, shape_of, stop_ids
from peftkit.base.locate import Origin, digest, locate, read_json
from peftkit.base.machine import choose_device
from peftkit.base.memory import Shape, shape_of_config
from peftkit.base.places import place_parameters
from peftkit.base.quantize import count_packed, packed_bytes
from peftkit.base.targets import first_trained_block, learned_places
from peftkit.data.draft import AS_IT_IS, Encoder, Reading
from peftkit.data.hub import resolve
from peftkit.data.prepare import Data, prepare_data
from peftkit.data.task import Task, describe_task, settle_labels
from peftkit.errors import RecipeError
from peftkit.evaluate.metrics import FIGURES
from peftkit.fast.refusals import unwrap
from peftkit.recipe.sections.adapter import IN_PLACE, NOTHING
from peftkit.recipe.sections.base import LABELLED
from peftkit.recipe.sections.regularize import general_sources
from peftkit.train.groups import Learning, find_factors
from peftkit.train.optimizer import is_vector
from peftkit.train.unfreeze import turns_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from peftkit.data.example import Example
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
    """The recipe's, with its number format and its labels settled."""
    why_dtype: str
    tokenizer: Any
    stops: frozenset[int]
    data: Data
    task: Task
    seed: int
    below: tuple[Below, ...] = ()
    """Frozen adapters that the new one stands on, the lowest first."""
    reading: Reading = AS_IT_IS
    elsewhere: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """Validation rows of other stages that this one can be asked about, by their names."""

    @property
    def standing_on(self) -> str:
        """Key of all that is frozen: the base, and what stands under the new adapter."""
        below = (each.digest + " folded" * each.folded for each in self.below)
        return "+".join([self.weights_key, *below])

    @property
    def dtype(self) -> str:
        """The name of the number format of the base."""
        return self.base.dtype

    @property
    def pad_id(self) -> int:
        """An id for positions that nothing looks at."""
        return pad_id_of(self.tokenizer)

    @property
    def changed_tokenizer(self) -> Any | None:
        """The tokenizer, where it is no longer the base's own."""
        return self.tokenizer if self.base.add_tokens else None

    @property
    def weights_key(self) -> str:
        """What decides every number of the loaded base: its files, and what was made of them."""
        base = self.base
        made = f"seed {self.seed}" if base.weights == "random" else base.quantize
        return f"{self.digest} {made} {base.double_quant}"


def set_up(
    recipe: Recipe,
    *,
    dtype: str | None = None,
    commits: Mapping[str, str] | None = None,
    fresh_data: bool = False,
) -> Setup:
    """Find the base, read its tokenizer, and turn the data into examples.

    Args:
        recipe: what is to be run.
        dtype: the number format, where it was settled before, as `lock.json` says it.
        commits: those of the data sets on a hub, likewise.
        fresh_data: make tokens anew that an earlier run kept.
    """
    reading = Reading(fresh_data, resolve(_names_on_hub(recipe), commits or {}))
    origin = locate(recipe.base)
    tokenizer = load_tokenizer(origin, recipe.base.add_tokens)
    stops = stop_ids(origin, tokenizer, recipe.base.stop_tokens)
    device = choose_device()
    _refuse_split_batches(recipe)
    frozen = recipe.adapter.method not in IN_PLACE
    base, why = settle_dtype(recipe.base, origin, device, frozen=frozen)
    if dtype and recipe.base.dtype == "auto":
        base = base.model_copy(update={"dtype": dtype})
    encoder = make_encoder(base, recipe.data, tokenizer, stops, reading)
    data = prepare_data(
        recipe.data,
        encoder,
        recipe.evaluate.remember,
        seed=recipe.seed,
        general=general_sources(recipe.train.regularize),
    )
    base = base.model_copy(update={"labels": _find_labels(base, data)})
    below: tuple[Below, ...] = ()
    if recipe.adapter.under != NOTHING:
        below = find_below(recipe.adapter, shape_of(base, origin), base=origin.name)
    return Setup(
        origin=origin,
        digest=digest(origin, weights=recipe.base.weights == "pretrained"),
        device=device,
        base=base,
        why_dtype=why,
        tokenizer=tokenizer,
        stops=stops,
        data=data,
        task=task_of(base, origin, tokenizer),
        seed=recipe.seed,
        below=below,
        reading=reading,
    )


def _names_on_hub(recipe: Recipe) -> list[str]:
    """The data sets on a hub that the recipe names anywhere, each once."""
    found = dict.fromkeys(_sources_in(recipe.model_dump(mode="json")))
    return [name for name in found if name.startswith("hub:")]


def _sources_in(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        if isinstance(source := values.get("source"), str):
            yield source
        values = list(values.values())
    if isinstance(values, list):
        for each in values:
            yield from _sources_in(each)


def make_encoder(
    base: BaseSection,
    section: DataSection,
    tokenizer: Any,
    stops: frozenset[int],
    reading: Reading = AS_IT_IS,
) -> Encoder:
    """How rows become tokens for a base and its task."""
    length, policy = section.max_length, section.too_long
    return Encoder(tokenizer, stops, length, policy, base.task, base.names, reading=reading)


def task_of(base: BaseSection, origin: Origin, tokenizer: Any) -> Task:
    """What rows ask of a base whose labels are settled."""
    told = "token_type_ids" in tokenizer.model_input_names
    typed = told and read_json(origin).get("type_vocab_size", 0) > 1
    return describe_task(base.task, tokenizer, labels=base.names, typed=typed)


def _find_labels(base: BaseSection, data: Data) -> tuple[str, ...] | str:
    if base.task not in LABELLED:
        return base.labels
    held = chain(data.validation.examples, data.test.examples if data.test else ())
    return settle_labels(base.labels, data.train.examples, held)


def _refuse_split_batches(recipe: Recipe) -> None:
    """Say where an update's rows must be seen together, because each is compared with the rest."""
    rows, micro = recipe.train.batch.rows, recipe.train.batch.micro_rows
    if recipe.base.task == "embedding" and micro not in ("auto", rows):
        raise RecipeError(
            f"train.batch.micro_rows: an embedding compares the {rows} rows of an update with each "
            f"other, so {micro} of them would be another task",
            hint=f"`--set train.batch.micro_rows=auto --set train.batch.rows={micro}`",
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
    places: int | None = None
    """Most places it has learned a vector for, where it does so: further ones are an error."""
    learning: Learning = field(default_factory=Learning)
    """How fast each parameter learns, and when it begins to."""

    @property
    def share(self) -> float:
        """Trainable parameters as a share of all, the adapter's included."""
        own = self.shape.parameters
        return self.trainable / max(own, self.trainable)


def measure_sizes(recipe: Recipe, base: BaseSection, origin: Origin) -> Sizes:
    """Sizes read off a model without memory: no weights are loaded for it."""
    model = shape_of(base, origin)
    base_parameters = sum(p.numel() for p in model.parameters())
    shape = shape_of_config(model.config, base_parameters)
    if base.task in FIGURES:  # its outputs are as many as labels, and not as many as words
        shape = replace(shape, vocabulary=max(1, len(base.names)))
    if recipe.base.quantize != "none":
        few = packed_bytes(recipe.base)
        shape = replace(shape, packed=count_packed(model), packed_bytes=few)
    model.requires_grad_(requires_grad=False)
    with torch.device("meta"):
        adapted = attach(model, recipe.adapter, seed=recipe.seed)
    parameters = trainable(adapted)
    blocks = shape.layers - first_trained_block(adapted, unwrap(adapted))
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    trained = sum(p.numel() for p in parameters.values())
    learning = Learning(
        {name: (p.numel(), is_vector(p)) for name, p in parameters.items()},
        place_parameters(adapted, unwrap(adapted)),
        find_factors(adapted, recipe.adapter, recipe.train),
        turns_of(recipe.train, adapted),
    )
    return Sizes(shape, trained, blocks, window, learned_places(model), learning)
