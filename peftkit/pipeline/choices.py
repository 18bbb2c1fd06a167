"""Choices that are measured rather than written: made once, locked, and reused on resume."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from peftkit.base.quantize import require_bitsandbytes
from peftkit.base.targets import explain_experts
from peftkit.data.batch import Layout, collate, flatten, make_update
from peftkit.data.task import CAUSAL, Task
from peftkit.data.views import lengths_of, some_of
from peftkit.disk.cache import cache_limit, make_room
from peftkit.disk.size import show_bytes
from peftkit.errors import RecipeError, RunError
from peftkit.fast.compiled import compile_blocks
from peftkit.fast.frozen import describe_states
from peftkit.fast.lora import enable as lora_on
from peftkit.fast.loss import token_losses
from peftkit.fast.norm import enable as enable_norms
from peftkit.fast.paths import (
    PATHS,
    Paths,
    choose_compile,
    choose_frozen,
    choose_head,
    choose_lora,
    choose_norm,
)
from peftkit.fast.recompute import recompute, refuse_recompute
from peftkit.fast.refusals import refuse_shared_rows
from peftkit.fast.varlen import FlatRowError, disable, enable
from peftkit.pipeline.plan import fit_memory
from peftkit.pipeline.setup import measure_sizes
from peftkit.recipe.sections.pace import NOT_GRADUAL
from peftkit.recipe.sections.regularize import acting
from peftkit.train.loop import accumulate
from peftkit.train.regularize.terms import ruled_out
from peftkit.train.threads import choose_threads, explain_threads, measure_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from peftkit.data.batch import Batch, Update
    from peftkit.data.example import Example
    from peftkit.fast.chunked import Head
    from peftkit.pipeline.plan import Plan
    from peftkit.pipeline.setup import Setup
    from peftkit.recipe.schema import Recipe

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Difference of a token's loss, packed and alone, up to which packing counts as exact."""
FLAT_WIDTH = 256
"""Hidden size from which documents end to end beat padded rows; see benchmarks/LOG.md.

A rule and not a measurement: the layout decides the last digits, and two runs of one recipe must
agree on them whatever else the machine was doing when they started.
"""


@dataclass(frozen=True, slots=True)
class Choices:
    """What was settled by looking at this machine and this model."""

    threads: int
    dtype: str
    micro_rows: int
    device: str
    packing: bool
    why: dict[str, str]
    """Why each of them is what it is."""
    flat: bool = False
    """Whether packed documents lie end to end, with neither padding nor mask."""
    micro_tokens: int = 0
    head: bool = False
    """Whether the loss goes through the frozen head only where tokens are trained."""
    lora: bool = False
    """Whether LoRA layers train in the base's number format."""
    frozen: bool = False
    """Whether what the blocks below the adapter compute is kept."""
    norm: bool = False
    """Whether norms keep their input alone."""
    optimizer: bool = False
    """Whether AdamW works on one buffer."""
    paged: bool = False
    """Whether the moments of AdamW may leave the GPU."""
    compile: bool = False
    """Whether blocks train compiled."""
    recomputed: int = 0
    """Blocks that run again for the backward pass."""
    learning_rate: float = 0.0
    """The highest one of the run: the recipe's, or what a range test found."""
    processes: int = 1
    """How many divide the rows of each update; settled by the launcher."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `lock.json` says."""
        return asdict(self)

    @property
    def lines(self) -> Iterator[str]:
        """What is on, or off, and why: for the first lines of a run."""
        why, on = self.why, [name for name in PATHS if getattr(self, name)]
        yield f"the base is held in {self.dtype}: {why['dtype']}"
        if "experts" in why:
            yield why["experts"]
        yield f"packing is {'on' if self.packing else 'off'}: {why['packing']}"
        yield f"fast paths that are on: {', '.join(on) or 'none'}"
        for name in PATHS:
            if name not in on:
                yield f"{name} is off: {why[name]}"
        if self.paged:
            yield f"AdamW's moments may leave the GPU: {why['paged']}"
        if self.recomputed:
            yield f"{self.recomputed} blocks run again for the backward pass: {why['recompute']}"
        yield f"{self.threads} CPU thread(s): {why['threads']}"

    def lay_out(self, pad_id: int, task: Task = CAUSAL) -> Layout:
        """How the documents of an update are laid out."""
        return Layout(self.packing, self.micro_rows, pad_id, self.flat, self.micro_tokens, task)


def make_choices(recipe: Recipe, setup: Setup, plan: Plan, model: Any) -> Choices:
    """Settle what the recipe leaves open, with the model as it will train."""
    fast, why = recipe.train.fast, {"dtype": setup.why_dtype}
    if experts := explain_experts(model):
        why["experts"] = experts
    lora, why["lora"] = choose_lora(model, fast)
    norm, why["norm"] = choose_norm(model, fast)
    packing, flat, why["packing"], why["flat"] = _choose_packing(recipe, setup, model)
    width = int(lengths_of(setup.data.train.examples).max())
    layout = Layout(
        packing, plan.micro_rows, setup.pad_id, flat, plan.micro_rows * width, setup.task
    )
    documents = setup.data.train.examples[: recipe.train.batch.rows]
    first = make_update(documents, layout).micro_batches[0].to(setup.device)
    refused = ruled_out(list(acting(recipe.train.regularize)))
    if "head" in refused:
        head, why["head"] = None, refused["head"]
    else:
        head, why["head"] = choose_head(model, fast, first)
    if "frozen" in refused:
        frozen, why["frozen"] = False, refused["frozen"]
    else:
        frozen, why["frozen"] = _choose_frozen(recipe, plan, model, first)
    rows, recomputed, why["recompute"] = _choose_memory(recipe, setup, plan, model, head)
    paged, why["paged"] = _choose_pages(recipe, setup)
    choices = Choices(
        threads=1,
        dtype=setup.dtype,
        micro_rows=rows,
        device=setup.device.type,
        packing=packing,
        why=why,
        flat=flat,
        micro_tokens=rows * width,
        head=head is not None,
        lora=lora,
        norm=norm,
        frozen=frozen,
        optimizer=fast.optimizer != "off",
        paged=paged,
        recomputed=recomputed,
    )
    why["optimizer"] = "one buffer for all" if choices.optimizer else "`train.fast.optimizer: off`"
    recompute(model, recomputed)
    update = make_update(
        documents, choices.lay_out(setup.pad_id, setup.task)
    )  # in the memory there is
    step = partial(_step, model, update, Paths(head))
    threads, seconds, why["threads"] = _choose_threads(recipe, step)
    torch.set_num_threads(threads)
    compiled, why["compile"] = _choose_compile(
        recipe, model, step, seconds * plan.steps, recomputed
    )
    return replace(choices, threads=threads, compile=compiled)


def _choose_compile(
    recipe: Recipe, model: Any, step: Callable[[], Tensor], seconds: float, recomputed: int
) -> tuple[bool, str]:
    if recipe.train.unfreeze != NOT_GRADUAL:
        return False, "`train.unfreeze` changes what of a block trains"
    fast = recipe.train.fast
    return choose_compile(model, fast, step, seconds=seconds, recomputed=recomputed)


def keep_choices(facts: dict[str, Any], model: Any, recipe: Recipe | None = None) -> Choices:
    """The choices of an earlier part of the run, and `model` switched as they say.

    What the recipe now says outright of threads and micro-batches counts; both may change on the
    way, because they move nothing but the last digits.
    """
    choices = Choices(**facts)
    if recipe is not None and recipe.train.threads != "auto":
        choices = replace(choices, threads=recipe.train.threads)
    if recipe is not None and recipe.train.batch.micro_rows != "auto":
        width = choices.micro_tokens // choices.micro_rows
        rows = recipe.train.batch.micro_rows
        choices = replace(choices, micro_rows=rows, micro_tokens=rows * width)
    if recipe is not None and not isinstance(recipe.train.learning_rate, str):
        choices = replace(choices, learning_rate=recipe.train.learning_rate)
    recompute(model, choices.recomputed)
    switches = {"flat": enable, "lora": lora_on, "norm": _norms_on, "compile": compile_blocks}
    for name, switch in switches.items():
        if getattr(choices, name) and (reason := switch(model)):
            raise RunError(
                f"the run began with {PATHS[name]}, which is no longer possible: {reason}",
                hint="go on with the versions that `lock.json` names, or start over with `--fresh`",
            )
    return choices


def _choose_frozen(recipe: Recipe, plan: Plan, model: Any, batch: Batch) -> tuple[bool, str]:
    """Whether what the blocks below the adapter compute is kept, and why."""
    cut, why = choose_frozen(model, recipe.train.fast, batch)
    if cut is None:
        return False, why
    if plan.steps * plan.rows_per_step <= plan.rows:
        return False, "the run sees no more documents than there are"
    dtype, width = describe_states(model)
    needed = plan.tokens_per_epoch * width * dtype.itemsize
    if not make_room(needed):
        limit = f"PEFTKIT_CACHE_GIB is {cache_limit() / 2**30:g}"
        return False, f"the cache has no room for {show_bytes(needed)} of states ({limit})"
    return True, f"{why}; their states take {show_bytes(needed)} of disk"


def _choose_pages(recipe: Recipe, setup: Setup) -> tuple[bool, str]:
    """Whether the moments of AdamW may leave the GPU, and why."""
    chosen, cuda = recipe.train.optimizer, setup.device.type == "cuda"
    if chosen == "paged-adamw":
        if not cuda:
            raise RecipeError(
                f"train.optimizer: paged-adamw, but this run is on {setup.device.type}: only a "
                "CUDA GPU has pages to move",
                hint="`--set train.optimizer=auto`",
            )
        require_bitsandbytes("train.optimizer", chosen, "adamw")
        return True, f"`train.optimizer: {chosen}`"
    if chosen == "auto" and cuda and recipe.base.quantize != "none":
        return True, "the base is quantized, so memory is scarce"
    return False, f"`train.optimizer: {chosen}`"


def _choose_memory(
    recipe: Recipe, setup: Setup, plan: Plan, model: Any, head: Head | None
) -> tuple[int, int, str]:
    """Rows of a forward pass, blocks that run again, and why, now that the model is there."""
    rows, recomputed = plan.micro_rows, plan.recomputed_blocks
    if (
        head is None and recipe.train.fast.head != "off" and setup.task.packs
    ):  # the plan knew nothing of a refusal
        sizes = measure_sizes(recipe, setup.base, setup.origin)
        rows, load = fit_memory(recipe, setup, sizes, logits=True)
        recomputed = load.recomputed
    if recipe.train.recompute != "auto":
        why = f"`train.recompute: {recipe.train.recompute}`"
    elif recomputed:
        why = "as few as memory demands"
    else:
        why = "a step fits into memory as it is"
    if recomputed and (reason := refuse_recompute(model)):
        if recipe.train.recompute == "all":
            raise RecipeError(
                f"train.recompute: all, but {reason}",
                hint="`--set train.recompute=auto` does without where it must",
            )
        return rows, 0, reason
    return rows, recomputed, why


def _choose_packing(recipe: Recipe, setup: Setup, model: Any) -> tuple[bool, bool, str, str]:
    """Whether documents share rows, whether these are flat, and why of each."""
    lengths = lengths_of(setup.data.train.examples)
    places = np.flatnonzero(lengths > 2)
    alone = None if recipe.data.packing else "`data.packing: false`"
    if not setup.task.packs:
        alone = f"rows of {setup.task.name} stand alone"
    alone = alone or ("there is only one document" if len(places) < 2 else None)
    alone = alone or refuse_shared_rows(model)
    if alone:
        return False, False, alone, alone
    tried = np.array([*places[:2], lengths.argmax()])
    documents = some_of(setup.data.train.examples, tried)
    worst = packing_error(model, documents, setup.pad_id)
    packs = worst <= TOLERANCE[setup.dtype]
    flat, why_flat = _try_flat(recipe, setup, model, documents)
    if packs:
        why = f"packed documents do not see each other (loss differs by {worst:.1g})"
        return True, flat, why, why_flat
    why = f"this base lets packed documents see each other (loss differs by {worst:.2g})"
    return flat, flat, f"{why}, but not end to end" if flat else why, why_flat


def _try_flat(
    recipe: Recipe, setup: Setup, model: Any, documents: Sequence[Example]
) -> tuple[bool, str]:
    """Switch flat rows on if this very model computes in them what it does alone."""
    if recipe.train.fast.flat == "off":
        return False, "`train.fast.flat: off`"
    width = int(model.config.get_text_config().hidden_size)
    if width < FLAT_WIDTH:
        return False, f"a width of {width} is below {FLAT_WIDTH}, where it does not pay"
    if reason := enable(model):
        return False, reason
    try:
        worst = packing_error(model, documents, setup.pad_id, flat=True)
    except (FlatRowError, AttributeError, TypeError) as error:  # its code looks into the mask
        why = str(error)
    else:
        if worst <= TOLERANCE[setup.dtype]:
            return True, f"they do not see each other (loss differs by {worst:.1g})"
        why = f"they are not what they are alone (loss differs by {worst:.2g})"
    disable(model)
    return False, why


@torch.inference_mode()
def packing_error(
    model: Any, documents: Sequence[Example], pad_id: int, *, flat: bool = False
) -> float:
    """Largest difference of a token's loss between documents in one row and documents alone."""
    device = next(model.parameters()).device
    model.eval()
    together = flatten(documents) if flat else collate([documents], pad_id)
    packed = token_losses(model, together.to(device))[0]
    at, worst = 0, 0.0
    for document in documents:
        alone = token_losses(model, collate([[document]], pad_id).to(device))[0]
        size = document.length
        worst = max(worst, float((packed[at : at + size] - alone).abs().max()))
        at += size
    return worst


def _choose_threads(recipe: Recipe, step: Callable[[], object]) -> tuple[int, float, str]:
    """How many threads, what a step takes with them, and why so many."""
    named = recipe.train.threads
    if named == "auto":
        measured = measure_threads(step)
        chosen = choose_threads(measured)
        return chosen, measured[chosen], explain_threads(measured)
    torch.set_num_threads(named)
    started = time.perf_counter()
    step()
    return named, time.perf_counter() - started, "`train.threads`"


def _step(model: Any, update: Update, paths: Paths) -> Tensor:
    """The loss of an update, and the work of its gradients, which are thrown away."""
    model.train()
    device = next(model.parameters()).device
    loss = accumulate(model, update, device, seed=0, loss=paths.summed)
    model.zero_grad(set_to_none=True)
    return loss


def _norms_on(model: Any) -> str | None:
    count, why = enable_norms(model)
    return None if count else why
