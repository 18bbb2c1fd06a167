"""Bases and arms, made when they are first asked for, and gated before anything is timed."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from cells import attempt
from clock import watch_kept
from contenders import (
    ImitatedTrl,
    Ours,
    Plain,
    Setting,
    pack_bounded_rows,
    pack_rows,
    pad_rows,
    read_alone,
)
from documents import count_tokens, draw_documents
from frozen import SHAPES, Frozen
from gate import compare
from plan import MASK, NF4, OURS, OURS_PADDED, PADDED, TRL, VARLEN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arm import Reading
    from contenders import Contender

    from peftkit.data.example import Example

GATE_DOCUMENTS = 8
GATE_SEED = 2
GATE_SETTING = Setting(tokens=8192, recompute=False)
UNGATED = (TRL, NF4)
"""One is there for its memory, the other has another base."""

MAKERS: dict[str, Callable[[Frozen], Contender]] = {
    OURS: partial(Ours, packed=True),
    OURS_PADDED: partial(Ours, packed=False),
    NF4: partial(Ours, packed=True, nf4=True),
    VARLEN: partial(Plain, rows=pack_bounded_rows, within=True),
    MASK: partial(Plain, rows=pack_rows),
    PADDED: partial(Plain, rows=pad_rows),
    TRL: ImitatedTrl,
}


class Workshop:
    """One shape: its base, its arms, and what the gate said of each."""

    def __init__(self, shape: str, device: torch.device) -> None:
        self.base = Frozen(SHAPES[shape], device)
        self.sizes = self.base.sizes
        self.gates: dict[str, Any] = {}
        self._arms: dict[str, Contender] = {}
        count = GATE_DOCUMENTS
        self._documents = draw_documents(count, self.vocabulary, seed=GATE_SEED)
        self._reference: Reading | None = None

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.base.shape.vocabulary

    def maker(self, name: str) -> Callable[[], Contender]:
        """What gives the arm of a name, gated when it is first made."""
        return partial(self._find, name)

    def forget(self, name: str) -> None:
        """Let an arm go, and the weights of its own."""
        self._arms.pop(name, None)

    def _find(self, name: str) -> Contender:
        if name not in self._arms:
            arm = MAKERS[name](self.base)
            if name not in UNGATED:
                self.gates[name] = attempt(partial(self._judge, arm))
            self._arms[name] = arm
        return self._arms[name]

    def _judge(self, arm: Contender) -> dict[str, Any]:
        """How far an arm is from the reference, and what it keeps for backward meanwhile."""
        arm.enter(GATE_SETTING)
        with watch_kept(arm.model) as kept:
            reading = arm.read(self._documents)
        tokens = count_tokens(self._documents)
        verdict = compare(reading, self._wanted(self._documents), torch.bfloat16)
        return asdict(verdict) | {"kept_bytes_per_token": round(kept.total / tokens)}

    def _wanted(self, documents: Sequence[Example]) -> Reading:
        if self._reference is None:
            self._reference = read_alone(self.base, documents)
        return self._reference
