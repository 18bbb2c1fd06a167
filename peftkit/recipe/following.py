"""Which stage can start from which, and as what: said before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.recipe.sections.adapter import IN_PLACE, NOTHING
from peftkit.recipe.sections.section import refused
from peftkit.recipe.sections.stages import BASE, PREVIOUS, TAKEN
from peftkit.recipe.spelling import did_you_mean, flow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peftkit.recipe.sections.stages import StageSection

    Place = tuple[str | int, ...]
    Problems = Iterator[tuple[Place, str]]

HEADS = ("classification", "multi-label", "regression", "token-classification")
"""Tasks with a head of their own, which an adapter for them brings along."""
OF_A_TASK = ("task", "labels", "stop_tokens")
"""Keys of `base` that a stage may have of its own."""
STACKS = ("lora", "ia3", "oft", "bottleneck")
"""Methods whose adapters can act above each other."""
UNFOLDABLE = ("bottleneck", "prefix", "prompt", "p-tuning")
"""Methods that do what no weight of the base can."""
PLAIN = ("plain", "eva", "loftq")
"""Variants of LoRA that differ in nothing once they have begun."""
FREE = ("dropout", "b_learning_rate_ratio", "init_text", "reset", "under", "under_as")
"""Keys of an adapter that may change where it goes on training."""


def start_of(stages: Sequence[StageSection], number: int) -> int | None:
    """The number of the stage that this one starts from; None for the base."""
    start = stages[number].start_from
    if start in (BASE, "auto"):
        return None
    if start == PREVIOUS:
        return number - 1
    return next(at for at, stage in enumerate(stages) if stage.name == start)


def refuse_what_cannot_follow(stages: Sequence[StageSection]) -> None:
    """Say everything that keeps a stage from starting where it says.

    Raises:
        ValidationError: with the place of each.
    """
    names = [stage.name for stage in stages]
    problems: dict[Place, str] = {}
    for number, stage in enumerate(stages):
        found = dict(_of_place(stages, number, names[:number]))
        if not found and (start := start_of(stages, number)) is not None:
            found = dict(_of_kind(stages[start], stage))
        problems |= {("stages", number, *place): said for place, said in found.items()}
    if problems:
        raise refused(problems)


def _of_place(stages: Sequence[StageSection], number: int, earlier: Sequence[str]) -> Problems:
    stage = stages[number]
    if stage.name in earlier:
        yield ("name",), f"two stages are called `{stage.name}`; each needs a name of its own"
    if stage.name in TAKEN:
        yield ("name",), f"`{stage.name}` already means something in `start_from`"
    if stage.start_from == PREVIOUS and not number:
        yield ("start_from",), "the first stage has no `previous` one; it starts from `base`"
    elif stage.start_from not in (*TAKEN, *earlier):
        yield ("start_from",), _no_such(stage.start_from, stages, earlier)
    if stage.start_from == BASE and stage.how != "auto":
        yield ("as",), f"`{stage.how}` says what becomes of an earlier stage; this starts from base"
    if stage.start_from != BASE and stage.adapter.under != NOTHING:
        what = "what it stands on is the stage that it starts from"
        yield ("adapter", "under"), f"{what}; `under` goes with `start_from: base`"
    yield from _other_base(stages[0], stage)


def _no_such(start: str, stages: Sequence[StageSection], earlier: Sequence[str]) -> str:
    if start in [stage.name for stage in stages]:
        return f"the stage `{start}` is not an earlier one"
    known = [BASE, *([PREVIOUS] if earlier else []), *earlier]
    close = did_you_mean(start, known)
    there = "" if close else f"; there is {', '.join(f'`{name}`' for name in known)}"
    return f"there is no stage `{start}`{close}{there}"


def _other_base(first: StageSection, stage: StageSection) -> Problems:
    one, other = first.base.model_dump(), stage.base.model_dump()
    for key, value in other.items():
        if key not in OF_A_TASK and value != one[key]:
            what = f"the stages share one base, and the first says {flow(one[key])}"
            yield ("base", key), f"{what}, this {flow(value)}; only its task may change"


def _of_kind(before: StageSection, stage: StageSection) -> Problems:
    """What one stage cannot do with what another leaves."""
    old, new = before.base.task, stage.base.task
    if old in HEADS and old != new:
        what = f"`{before.name}` leaves a head for {old}, which {new} has no place for"
        yield ("start_from",), f"{what}; start from an earlier stage or from `base`"
        return
    yield from {"continued": _continued, "folded": _folded, "stacked": _stacked}[stage.how](
        before, stage
    )


def _continued(before: StageSection, stage: StageSection) -> Problems:
    old, new = before.adapter.model_dump(), stage.adapter.model_dump()
    otherwise = "`as: stacked` or `as: folded` put a new adapter on it"
    if old["method"] != new["method"]:
        what = f"`{before.name}` trains {old['method']}, and this {new['method']}"
        yield ("as",), f"only an adapter of one kind goes on training: {what}; {otherwise}"
        return
    variant = old.get("variant")
    if variant in ("pissa", "olora"):
        what = f"`{variant}` is saved as plain LoRA of twice its rank, and cannot go on as itself"
        yield ("as",), f"{what}; {otherwise}"
    if old["method"] == "p-tuning" or old.get("projection"):
        what = f"what computes the adapter of `{before.name}` is not saved, only what it gives"
        yield ("as",), f"{what}; start from `base`"
    for key, value in new.items():
        same = value == old[key] or (key == "variant" and {value, old[key]} <= set(PLAIN))
        follows = key.startswith("alpha") and old["rank"] != new["rank"]
        if key not in FREE and not same and not follows:
            what = f"`{before.name}` goes on with {flow(old[key])}, and this says {flow(value)}"
            yield ("adapter", key), f"{what}; {otherwise}"


def _folded(before: StageSection, stage: StageSection) -> Problems:
    method, quantize = before.adapter.method, stage.base.quantize
    if quantize != "none":
        what = f"weights in {quantize} cannot take an adapter without being rounded once more"
        yield ("as",), f"{what}; `as: stacked` leaves them as they are"
    if method in UNFOLDABLE:
        yield ("as",), f"no weight of the base can do what {method} does; `as: continued` goes on"


def _stacked(before: StageSection, stage: StageSection) -> Problems:
    old, new = before.adapter.method, stage.adapter.method
    if old in IN_PLACE:
        return
    if old != new or old not in STACKS:
        can = ", ".join(STACKS)
        what = f"{new} cannot act above {old}: only two of a kind can, of {can}"
        instead = "continued" if old == new else "folded"
        left = old == new or old not in UNFOLDABLE
        yield ("as",), f"{what}{f'; `as: {instead}` goes with it' if left else ''}"
    elif before.base.task in HEADS:
        what = f"`{before.name}` leaves a head, and of two only one can act"
        yield ("as",), f"{what}; `as: continued` or `as: folded` trains it on"
