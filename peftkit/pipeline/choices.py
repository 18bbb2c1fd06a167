"""Choices that are measured rather than written: made once, locked, and reused on resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from peftkit.data.batch import Layout, collate, flatten, make_update
from peftkit.errors import RunError
from peftkit.fast.loss import token_losses
from peftkit.fast.paths import Paths, choose_head
from peftkit.fast.varlen import FlatRowError, disable, enable
from peftkit.train.loop import accumulate
from peftkit.train.threads import choose_threads, explain_threads, measure_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.batch import Update
    from peftkit.data.example import Example
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
    flat: bool = False
    """Whether packed documents lie end to end, with neither padding nor mask."""
    micro_tokens: int = 0
    head: bool = False
    """Whether the loss goes through the frozen head only where tokens are trained."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `lock.json` says."""
        return asdict(self)

    def lay_out(self, pad_id: int) -> Layout:
        """How the documents of an update are laid out."""
        return Layout(self.packing, self.micro_rows, pad_id, self.flat, self.micro_tokens)


def make_choices(recipe: Recipe, setup: Setup, plan: Plan, model: Any) -> Choices:
    """Measure what the recipe leaves open, with the model as it will train."""
    packing, flat, why_packing = _choose_packing(recipe, setup, model)
    width = max(example.length for example in setup.data.train.examples)
    choices = Choices(
        threads=1,
        dtype=setup.dtype,
        micro_rows=plan.micro_rows,
        device=setup.device.type,
        packing=packing,
        why={},
        flat=flat,
        micro_tokens=plan.micro_rows * width,
    )
    examples = setup.data.train.examples[: recipe.train.batch.rows]
    update = make_update(examples, choices.lay_out(setup.pad_id))
    first = update.micro_batches[0].to(setup.device)
    head, why_head = choose_head(model, recipe.train.fast, first)
    threads, why_threads = _choose_threads(recipe, update, Paths(head), model)
    why = {"packing": why_packing, "head": why_head, "threads": why_threads}
    return replace(choices, threads=threads, head=head is not None, why=why)


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
    if choices.flat and (reason := enable(model)):
        raise RunError(
            f"the run began with documents end to end, which is no longer possible: {reason}",
            hint="go on with the versions that `lock.json` names, or start over with `--fresh`",
        )
    return choices


def _choose_packing(recipe: Recipe, setup: Setup, model: Any) -> tuple[bool, bool, str]:
    """Whether documents share rows, whether these are flat, and why."""
    if not recipe.data.packing:
        return False, False, "`data.packing: false`"
    examples = [example for example in setup.data.train.examples if example.length > 2]
    if len(examples) < 2:
        return False, False, "there is only one document"
    documents = [*examples[:2], max(examples, key=lambda example: example.length)]
    worst = packing_error(model, documents, setup.pad_id)
    packs = worst <= TOLERANCE[setup.dtype]
    flat, why_flat = _try_flat(recipe, setup, model, documents)
    if flat:
        return True, True, why_flat
    if not packs:
        why = f"this base lets packed documents see each other (loss differs by {worst:.2g})"
        return False, False, f"{why}; not end to end, because {why_flat}"
    why = f"packed documents do not see each other (loss differs by {worst:.1g})"
    return True, False, f"{why}; padded and masked, because {why_flat}"


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
            why = f"documents end to end do not see each other (loss differs by {worst:.1g})"
            return True, why
        why = f"documents end to end are not what they are alone (loss differs by {worst:.2g})"
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


def _choose_threads(recipe: Recipe, update: Update, paths: Paths, model: Any) -> tuple[int, str]:
    if recipe.train.threads != "auto":
        return recipe.train.threads, "`train.threads`"
    device = next(model.parameters()).device

    def step() -> None:
        model.train()
        accumulate(model, update, device, seed=0, loss=paths.summed)
        model.zero_grad(set_to_none=True)

    measured = measure_threads(step)
    return choose_threads(measured), explain_threads(measured)
