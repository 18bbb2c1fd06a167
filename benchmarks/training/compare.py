"""One shape: every arm gated, then timed, at every label density."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from clock import cpu_seconds
from documents import count_tokens, draw_documents, thin_labels
from flops import measure_sizes
from gate import compare_learning, learns_alike
from head import compare_heads
from ours import SWITCHES, OurArm
from plain import PlainArm, pack_documents, pad_documents, read_one_by_one
from rounds import judge, time_rounds
from shapes import SHAPES, Bases
from trl_arm import TrlArm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from arm import Arm, Reading

    from peftkit.data.example import Example

GATE_DOCUMENTS = 8
DOCUMENT_SEED = 1
TRL = ("trl default", "trl tuned")
PLAIN = ("plain float32 padded", "plain bfloat16 packed")
ARMS = (*PLAIN, *TRL, *SWITCHES)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is compared, and for how long."""

    arms: tuple[str, ...]
    densities: tuple[float, ...]
    docs: int
    """Documents of an epoch."""
    rounds: int
    """Warm epochs of each arm; a cold one comes first."""


def compare(shape: str, settings: Settings, folder: Path) -> Iterator[dict[str, Any]]:
    """Equality, memory and speed of every arm on one shape: what is known after each density."""
    started = cpu_seconds()
    bases = Bases(SHAPES[shape])
    documents = draw_documents(settings.docs, SHAPES[shape].vocabulary, seed=DOCUMENT_SEED)
    makers = list_arms(bases, folder, documents)
    arms = {name: makers[name]() for name in makers if name in settings.arms}
    heads = compare_heads(SHAPES[shape], settings.densities, settings.rounds)
    densities = {}
    for density in settings.densities:
        densities[f"{density:g}"] = _compare_arms(
            arms, bases, thin_labels(documents, density), settings.rounds
        )
        spent = round(cpu_seconds() - started)
        print(f"{shape}, labels {density:.0%}: {spent} CPU s so far", file=sys.stderr)
        yield {
            "tokens": count_tokens(documents),
            "densities": densities,
            "head": heads,
            "cpu_seconds": spent,
        }


def _compare_arms(
    arms: Mapping[str, Arm], bases: Bases, documents: Sequence[Example], rounds: int
) -> dict[str, Any]:
    judged = judge(arms, documents[:GATE_DOCUMENTS], Reference(bases, documents))
    timed = time_rounds(arms, documents, measure_sizes(bases), rounds)
    both = {name: judged[name] | timed["arms"][name] for name in arms}
    for name, facts in both.items():
        twins = [other for other in arms if is_reference(arms[other], arms[name])]
        learnt = compare_learning(facts["losses"], both[twins[0]]["losses"]) if twins else None
        facts["learnt"] = learnt
        facts["equal"] = facts["equality"]["equal"] and learns_alike(learnt)
    return {"gemm_per_second": timed["gemm_per_second"], "arms": both}


def is_reference(candidate: Arm, arm: Arm) -> bool:
    """Whether one arm does in float32 what the other does in its own way."""
    exact = candidate.work.dtype == torch.float32
    return exact and candidate.work.layers == arm.work.layers


def list_arms(
    bases: Bases, folder: Path, documents: Sequence[Example]
) -> dict[str, Callable[[], Arm]]:
    """Every arm by name, made when it is called."""
    return {
        PLAIN[0]: partial(PlainArm, bases, torch.float32, pad_documents),
        PLAIN[1]: partial(PlainArm, bases, torch.bfloat16, pack_documents),
        TRL[0]: partial(TrlArm, bases, folder, tuned=False),
        TRL[1]: partial(TrlArm, bases, folder, tuned=True),
    } | {name: partial(OurArm, bases, switches, documents) for name, switches in SWITCHES.items()}


class Reference:
    """What arms with the same adapted layers must compute, read once."""

    def __init__(self, bases: Bases, documents: Sequence[Example]) -> None:
        self._bases, self._documents = bases, documents[:GATE_DOCUMENTS]
        self._known: dict[tuple[int, ...] | None, Reading] = {}

    def __call__(self, arm: Arm) -> Reading:
        """The reading for the layers that this arm adapts."""
        layers = arm.work.layers
        if layers not in self._known:
            chosen = None if layers is None else list(layers)
            self._known[layers] = read_one_by_one(self._bases, self._documents, chosen)
        return self._known[layers]
