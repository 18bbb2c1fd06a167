"""Gradual unfreezing: which parameters begin to learn together, and when the next ones do.

By epoch that follows from the step alone. On a plateau it follows from validation: what is known so
far is a small value that goes into each checkpoint, so a resumed run decides as the whole one did.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from peftkit.base.places import ABOVE, place_parameters, refuse_order
from peftkit.base.targets import count_blocks
from peftkit.errors import RecipeError
from peftkit.fast.refusals import unwrap
from peftkit.recipe.sections.pace import NOT_GRADUAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.base.places import Place
    from peftkit.recipe.sections.train import TrainSection

Decision = Literal["go on", "thaw", "roll back"]


@dataclass(frozen=True, slots=True)
class Depth:
    """What validation was while so many turns learned."""

    depth: int
    name: str
    """What the last of them is."""
    step: int
    """After which step it began to learn."""
    loss: float
    """The lowest validation loss until the next one did, or that for which it was rolled back."""
    kept: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What validation has shown so far, in a run that thaws on a plateau."""

    depth: int = 1
    """How many turns learn."""
    since: int = 0
    """After which step the last of them began to."""
    best: float | None = None
    """Lowest validation loss since then; none before the first evaluation."""
    waited: int = 0
    """Evaluations in a row that were no better."""
    before: float | None = None
    """Validation loss before the last thaw, until an evaluation has judged it."""
    settled: bool = False
    """Whether a thaw was rolled back, so that none follows."""
    curve: tuple[Depth, ...] = ()
    judged: int = 0
    """After which step the last evaluation came that this follows from."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says."""
        return asdict(self)


def recall(facts: Mapping[str, Any] | None) -> Known:
    """What a checkpoint said, or nothing yet."""
    if not facts:
        return Known()
    return replace(Known(**facts), curve=tuple(Depth(**each) for each in facts["curve"]))


def turns_of(pace: TrainSection, model: Any) -> dict[str, int]:
    """When each parameter begins to learn; empty where all do from the first step."""
    return {} if pace.unfreeze == NOT_GRADUAL else find_turns(model)


def find_turns(model: Any) -> dict[str, int]:
    """When each parameter that trains begins to: 0 from the start, 1 next, and so on downward.

    A head begins alone, with the norm beside it; without one, the norm goes with the highest block
    that trains.

    Raises:
        RecipeError: the blocks are in no order, or only one of them trains.
    """
    if reason := refuse_order(model, unwrap(model)):
        raise RecipeError(
            f"train.unfreeze: the layers of this model cannot be put in an order: {reason}",
            hint="`--set train.unfreeze=none`",
        )
    places = place_parameters(model, unwrap(model))
    levels = sorted({place.level for place in places.values()}, reverse=True)
    above = count_blocks(unwrap(model))
    if levels[0] == above and len(levels) > 1 and not any(p.head for p in places.values()):
        levels.remove(above)  # a norm alone is no turn
    if len(levels) < 2:
        raise RecipeError(
            "train.unfreeze: all that trains is in one place, so nothing is left to thaw",
            hint="`--set train.unfreeze=none`, or an adapter on more blocks",
        )
    return {name: levels.index(min(place.level, levels[0])) for name, place in places.items()}


def name_turns(places: Mapping[str, Place], turns: Mapping[str, int]) -> list[str]:
    """What begins to learn at each turn, as a table calls it."""
    names: list[list[str]] = [[] for _ in range(max(turns.values()) + 1)]
    for name, turn in turns.items():
        if places[name].name not in names[turn]:
            names[turn].append(places[name].name)
    return [" and ".join(sorted(each, key=lambda name: name == ABOVE)) for each in names]


def depth_by_epoch(step: int, *, rows: int, an_epoch: float, turns: int) -> int:
    """How many turns learn in the update after `step`: one more with each epoch."""
    return min(turns, 1 + int(step * rows // an_epoch))


def first_steps(turns: int, *, rows: int, an_epoch: float) -> list[int]:
    """The first update that each turn learns in, where one begins with each epoch."""
    return [math.ceil(turn * an_epoch / rows) + 1 for turn in range(turns)]


def decide(
    known: Known, step: int, loss: float, *, names: list[str], patience: int, again: bool
) -> tuple[Known, Decision]:
    """What an evaluation after `step` means.

    Args:
        known: what was known before it.
        step: the update it came after.
        loss: what it measured.
        names: of all turns.
        patience: evaluations without a better one that it takes to thaw the next turn.
        again: whether another evaluation will come in time to judge a thaw.
    """
    if known.before is not None and loss > known.before:
        curve = (*known.curve, _depth(known, names, loss, kept=False))
        back = known.depth - 1
        was = next(each for each in reversed(curve) if each.depth == back)
        return Known(back, was.step, was.loss, settled=True, curve=curve), "roll back"
    better = known.best is None or loss < known.best
    best = loss if known.best is None else min(loss, known.best)
    waited = 0 if better else known.waited + 1
    curve = _with(known, _depth(known, names, best, kept=True))
    known = replace(known, best=best, before=None, waited=waited, curve=curve)
    more = known.depth < len(names) and not known.settled and again
    if known.waited < patience or not more:
        return known, "go on"
    return Known(known.depth + 1, step, before=loss, curve=known.curve), "thaw"


def _depth(known: Known, names: list[str], loss: float, *, kept: bool) -> Depth:
    return Depth(known.depth, names[known.depth - 1], known.since, loss, kept)


def _with(known: Known, entry: Depth) -> tuple[Depth, ...]:
    """The curve with a depth's entry renewed, or added."""
    others = [each for each in known.curve if each.depth != entry.depth or not each.kept]
    return (*others, entry)
