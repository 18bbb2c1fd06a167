"""Choices that are measured rather than written: made once, locked, and reused on resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from peftkit.data.batch import Layout, collate, make_update
from peftkit.fast.loss import token_losses
from peftkit.train.loop import accumulate
from peftkit.train.threads import choose_threads, explain_threads, measure_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.example import Example
    from peftkit.pipeline.plan import Plan
    from peftkit.pipeline.setup import Setup
    from peftkit.recipe.schema import Recipe

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Difference of a token's loss, packed and alone, up to which packing counts as exact."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What was settled by looking at this machine and this model."""

    threads: int
    dtype: str
    micro_rows: int
    device: str
    packing: bool
    why: dict[str, str]

    @property
    def facts(self) -> dict[str, Any]:
        """What `lock.json` says."""
        return asdict(self)


def make_choices(recipe: Recipe, setup: Setup, plan: Plan, model: Any) -> Choices:
    """Measure what the recipe leaves open, with the model as it will train."""
    packing, why_packing = _choose_packing(recipe, setup, model)
    layout = Layout(packing, plan.micro_rows, setup.pad_id)
    threads, why_threads = _choose_threads(recipe, setup, layout, model)
    return Choices(
        threads=threads,
        dtype=setup.dtype,
        micro_rows=plan.micro_rows,
        device=setup.device.type,
        packing=packing,
        why={"packing": why_packing, "threads": why_threads},
    )


def _choose_packing(recipe: Recipe, setup: Setup, model: Any) -> tuple[bool, str]:
    if not recipe.data.packing:
        return False, "`data.packing: false`"
    documents = [e for e in setup.data.train.examples[:64] if e.length > 2][:2]
    if len(documents) < 2:
        return False, "there is only one document"
    worst = packing_error(model, documents, setup.pad_id)
    if worst > TOLERANCE[setup.dtype]:
        return (
            False,
            f"this base lets packed documents see each other (loss differs by {worst:.2g})",
        )
    return True, f"packed documents do not see each other (loss differs by {worst:.1g})"


@torch.inference_mode()
def packing_error(model: Any, documents: Sequence[Example], pad_id: int) -> float:
    """Largest difference of a token's loss between documents in one row and documents alone."""
    device = next(model.parameters()).device
    model.eval()
    packed = token_losses(model, collate([documents], pad_id).to(device))[0]
    at, worst = 0, 0.0
    for document in documents:
        alone = token_losses(model, collate([[document]], pad_id).to(device))[0]
        size = document.length
        worst = max(worst, float((packed[at : at + size - 1] - alone[: size - 1]).abs().max()))
        at += size
    return worst


def _choose_threads(recipe: Recipe, setup: Setup, layout: Layout, model: Any) -> tuple[int, str]:
    if recipe.train.threads != "auto":
        return recipe.train.threads, "`train.threads`"
    examples = setup.data.train.examples[: recipe.train.batch.rows]
    update = make_update(examples, layout)

    def step() -> None:
        model.train()
        accumulate(model, update, setup.device, seed=0)
        model.zero_grad(set_to_none=True)

    measured = measure_threads(step)
    return choose_threads(measured), explain_threads(measured)
