"""Which fast paths a run takes: each one proves itself on this very model, or says why not."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.fast import compiled, lora, norm
from peftkit.fast.frozen import Kept, check_feeding, feeding, find_cut
from peftkit.fast.head import (
    TOLERANCE,
    check_head,
    cut_row,
    find_head,
    head_loss,
    head_token_losses,
)
from peftkit.fast.loss import each_loss, summed_loss

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor

    from peftkit.data.batch import Batch
    from peftkit.fast.chunked import Head
    from peftkit.fast.frozen import Cut
    from peftkit.recipe.sections.train import FastSection


PATHS = {
    "flat": "documents end to end",
    "head": "loss through the frozen head where tokens are trained",
    "lora": "LoRA in the base's number format",
    "frozen": "states below the adapter kept",
    "norm": "norms that keep no float32 copy",
    "optimizer": "AdamW over one buffer",
    "compile": "compiled blocks",
}
"""Every fast path by its key under `train.fast`, and what it is called."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The fast paths of the loss that are on; without any, everything goes the plain way."""

    head: Head | None = None
    kept: Kept | None = None

    def summed(self, model: Any, batch: Batch) -> Tensor:
        """The summed loss of a batch, for training."""
        with self.fed(batch):
            if self.head is None:
                return summed_loss(model, batch)
            return head_loss(model, batch, self.head)

    def fed(self, batch: Batch) -> AbstractContextManager[None]:
        """Inside, a forward pass of the batch starts from the states that are kept, if any are."""
        kept = self.kept
        return nullcontext() if kept is None else feeding(kept.cut, kept.gather(batch))

    def each(self, model: Any, batch: Batch) -> Tensor:
        """The losses of each row of a batch, for evaluation."""
        if self.head is None:
            return each_loss(model, batch)
        return head_token_losses(model, batch, self.head)


def choose_lora(model: Any, section: FastSection) -> tuple[bool, str]:
    """Whether LoRA layers train in the base's own number format, and the reason."""
    if section.lora == "off":
        return False, "`train.fast.lora: off`"
    if reason := lora.enable(model):
        return False, reason
    return True, "every LoRA layer is a plain one on a plain linear layer"


def choose_norm(model: Any, section: FastSection) -> tuple[bool, str]:
    """Whether norms keep their input alone, and the reason."""
    if section.norm == "off":
        return False, "`train.fast.norm: off`"
    count, why = norm.enable(model)
    return count > 0, why


def choose_compile(
    model: Any, section: FastSection, step: Callable[[], Tensor], *, seconds: float, recomputed: int
) -> tuple[bool, str]:
    """Whether blocks train compiled, in a run of about so many seconds, and the reason."""
    if section.compile == "off":
        return False, "`train.fast.compile: off`"
    if reason := compiled.refuse_compile(seconds, recomputed=recomputed):
        return False, reason
    try:
        error = compiled.check_compiled(model, step)
    except (RuntimeError, TypeError, ValueError, LookupError, OSError, ImportError) as problem:
        compiled.release_blocks(model)
        return False, f"they cannot be compiled: {str(problem).strip().partition(chr(10))[0]}"
    if not error <= TOLERANCE[next(model.parameters()).dtype]:
        compiled.release_blocks(model)
        return False, f"compiled, the loss differs by {error:.2g}"
    return True, f"about {seconds:.0f} s of training earn it back; the loss differs by {error:.1g}"


def choose_head(model: Any, section: FastSection, batch: Batch) -> tuple[Head | None, str]:
    """The frozen head if it may be used and gives the plain path's result, and the reason."""
    if section.head == "off":
        return None, "`train.fast.head: off`"
    if not batch.task.packs:
        return None, f"it is for causal-lm, and this is {batch.task.name}"
    head = find_head(model)
    if isinstance(head, str):
        return None, head
    error, allowed = check_head(model, batch, head), TOLERANCE[head.weight.dtype]
    if not error <= allowed:  # NaN is within nothing
        return None, f"it differs from the plain path by {error:.2g} on this base"
    return head, f"losses and gradients differ from the plain path by {error:.1g}"


def choose_frozen(model: Any, section: FastSection, batch: Batch) -> tuple[Cut | None, str]:
    """Where the frozen layers end if what they compute may be kept, and the reason."""
    if section.frozen == "off":
        return None, "`train.fast.frozen: off`"
    if not batch.task.packs:
        return None, f"it is for causal-lm, and this is {batch.task.name}"
    cut = find_cut(model)
    if isinstance(cut, str):
        return None, cut
    try:
        error = check_feeding(model, cut_row(batch), cut)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as problem:
        return None, f"its upper blocks need more than states: {str(problem) or type(problem)}"
    dtype = next(model.parameters()).dtype
    if not error <= TOLERANCE[dtype]:
        return None, f"a pass from there on differs by {error:.2g}: more than states is passed on"
    return cut, f"{cut.first} of {len(cut.blocks)} blocks stand below the first adapter"


def restore_paths(model: Any, *, head: bool, kept: Kept | None = None) -> Paths:
    """The paths that a run was locked to, so that a resumed run takes the same ones."""
    found = find_head(model) if head else None
    return Paths(None if isinstance(found, str) else found, kept)
