"""What a run will take before it takes it: parameters, tokens, steps, memory, disk."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from peftkit.base.dtype import DTYPES
from peftkit.base.machine import own_memory
from peftkit.base.memory import (
    CPU_RUNTIME,
    Load,
    choose_micro_batch,
    evaluation_bytes,
    training_bytes,
)
from peftkit.data.packing import expected_fill
from peftkit.data.views import lengths_of
from peftkit.errors import RecipeError
from peftkit.evaluate.losses import BATCH_TOKENS
from peftkit.pipeline.gradual import begins_of
from peftkit.pipeline.setup import Setup, Sizes, measure_sizes
from peftkit.recipe.ending import keeps_best
from peftkit.recipe.sections.pace import OnPlateau
from peftkit.recipe.sections.regularize import acting
from peftkit.train.groups import describe_groups
from peftkit.train.regularize.terms import added_bytes, ruled_out

if TYPE_CHECKING:
    from peftkit.data.order import Order
    from peftkit.recipe.schema import Recipe
    from peftkit.train.groups import Group


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run."""

    parameters: int
    trainable: int
    share: float
    rows: int
    tokens_per_epoch: int
    steps: int
    epochs: float
    rows_per_step: int
    tokens_per_step: int
    micro_rows: int
    fill: float
    """Share of the positions that hold a token, where rows do not lie flat in one."""
    recomputed_blocks: int
    """Blocks that keep only what enters them and run again for the backward pass."""
    base_bytes: int
    """What the weights of the base take, packed layers counted as they are packed."""
    memory_bytes: dict[str, int]
    memory_available: int
    disk_bytes: int
    groups: tuple[Group, ...] = ()
    """What learns alike, from the top down."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `plan.json` says."""
        return asdict(self)


def make_plan(recipe: Recipe, setup: Setup, sizes: Sizes | None = None) -> Plan:
    """The plan of a run whose data is known; nothing is loaded for it but the model's shape."""
    sizes = sizes or measure_sizes(recipe, setup.base, setup.origin)
    _refuse_no_room(recipe, setup, sizes)
    order, lengths = setup.data.mixture.order, setup.data.mixture.lengths
    width = int(lengths.max())
    rows = recipe.train.batch.rows
    steps, an_epoch = count_steps(recipe, order), order.places(1)
    tokens = setup.data.mixture.tokens_per_epoch
    added = acting(recipe.train.regularize)
    plain = recipe.train.fast.head == "off" or recipe.base.task in ("masked-lm", "seq2seq")
    plain = plain or "kl" in added or "head" in ruled_out(list(added))
    micro, load = fit_memory(recipe, setup, sizes, logits=plain)
    bytes_a_number = DTYPES[setup.dtype].itemsize
    runtime = 0 if setup.device.type == "cuda" else CPU_RUNTIME
    training = runtime + training_bytes(
        sizes.shape, sizes.trainable, micro * width, bytes_a_number, load
    )
    training += added_bytes(added, sizes.shape.parameters, sizes.trainable)
    evaluation = runtime + evaluation_bytes(sizes.shape, max(BATCH_TOKENS, width), bytes_a_number)
    return Plan(
        parameters=sizes.shape.parameters,
        trainable=sizes.trainable,
        share=sizes.share,
        rows=len(lengths),
        tokens_per_epoch=tokens,
        steps=steps,
        epochs=steps * rows / an_epoch,
        rows_per_step=rows,
        tokens_per_step=round(tokens / an_epoch * rows),
        micro_rows=micro,
        fill=expected_fill(
            lengths,
            rows=rows,
            micro_rows=micro,
            packing=recipe.data.packing and setup.task.packs,
            seed=recipe.seed,
        ),
        recomputed_blocks=load.recomputed,
        base_bytes=sizes.shape.weight_bytes(bytes_a_number),
        memory_bytes={"training": training, "evaluation": evaluation},
        memory_available=own_memory(),
        disk_bytes=_disk_bytes(recipe, sizes.trainable),
        groups=describe_groups(
            sizes.learning, recipe.train, begins_of(recipe, sizes.learning.turns, order, steps)
        ),
    )


def _disk_bytes(recipe: Recipe, trainable: int) -> int:
    """Bytes of all saves at once, one being written among them, and of the adapter.

    One more is what a thaw may be taken back to.
    """
    average = recipe.train.average
    last, ema = ("none", "none") if average == "none" else (average.last, average.ema)
    thaw = isinstance(recipe.train.unfreeze, OnPlateau)
    saves = recipe.train.keep + 1 + keeps_best(recipe) + thaw + (0 if last == "none" else last)
    return saves * trainable * (12 if ema == "none" else 16) + trainable * 4


def fit_memory(recipe: Recipe, setup: Setup, sizes: Sizes, *, logits: bool) -> tuple[int, Load]:
    """Rows of a forward pass, and what it keeps, so that a step fits into the memory there is."""
    load = Load(blocks=sizes.adapted_blocks, logits=logits)
    named = recipe.train.batch.micro_rows
    if recipe.base.task == "embedding":  # an update's rows are compared with each other
        named = recipe.train.batch.rows
    rows, recomputed = choose_micro_batch(
        sizes.shape,
        load,
        rows=None if named == "auto" else named,
        most_rows=recipe.train.batch.rows,
        width=int(lengths_of(setup.data.train.examples).max()),
        memory=own_memory(),
        on_gpu=setup.device.type == "cuda",
        bytes_a_number=DTYPES[setup.dtype].itemsize,
        may_recompute=recipe.train.recompute == "auto",
    )
    if recipe.train.recompute == "all":
        recomputed = load.blocks
    return rows, replace(load, recomputed=recomputed)


def _refuse_no_room(recipe: Recipe, setup: Setup, sizes: Sizes) -> None:
    """Say where a row and what stands before it are longer together than the base was made for."""
    before, data = getattr(recipe.adapter, "tokens", 0), setup.data
    sets = [data.train, data.validation, *([data.test] if data.test else [])]
    longest = max(int(lengths_of(each.examples).max()) for each in sets)
    if sizes.places is not None and longest > sizes.places:
        raise RecipeError(
            f"data.max_length: the longest row has {longest} tokens, and the base has learned "
            f"{sizes.places} places",
            hint=f"`--set data.max_length={sizes.places} --set data.too_long=truncate`",
        )
    if before and sizes.window is not None and longest + before > sizes.window:
        left = sizes.window - before
        raise RecipeError(
            f"adapter.tokens: {before} before the longest row of {longest} are more than the "
            f"{sizes.window} places that the base was made for",
            hint=f"`--set data.max_length={left} --set data.too_long=truncate`"
            if left > 0
            else "`--set adapter.tokens=16`",
        )


def count_steps(recipe: Recipe, order: Order) -> int:
    """Optimizer updates of the run."""
    if recipe.train.steps != "auto":
        return recipe.train.steps
    epochs = recipe.train.epochs
    passes = 3.0 if epochs == "auto" else epochs
    return max(1, math.ceil(order.places(passes) / recipe.train.batch.rows))
