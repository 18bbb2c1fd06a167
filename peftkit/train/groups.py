"""How fast each parameter learns: LoRA+, layer decay, faster heads and patterns, multiplied."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from peftkit.adapters.lora import rate_factors
from peftkit.base.places import Place, bare_name, place_parameters, refuse_order
from peftkit.base.targets import count_blocks
from peftkit.errors import RecipeError
from peftkit.fast.refusals import unwrap
from peftkit.recipe.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from peftkit.recipe.sections.pace import GroupSection
    from peftkit.recipe.sections.train import TrainSection


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters of one place that learn alike."""

    name: str
    """Where they are: a block, the head, the embeddings."""
    parameters: int
    times: float
    """What the learning rate of a step is multiplied by."""
    learning_rate: float | str
    """The highest one of the run, or `find`."""
    weight_decay: float
    begins: int | str
    """The step from which they learn; `plateau` where validation decides, `never` past the end."""


@dataclass(frozen=True, slots=True)
class Learning:
    """How fast each parameter that trains learns, and when it begins to, by name."""

    sizes: Mapping[str, tuple[int, bool]] = field(default_factory=dict)
    """How many numbers it has, and whether it is a vector, which never decays."""
    places: Mapping[str, Place] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    turns: Mapping[str, int] = field(default_factory=dict)


def find_factors(model: Any, adapter: Any, pace: TrainSection) -> dict[str, float]:
    """How many times the learning rate of a step each parameter that trains learns at, by name.

    Raises:
        RecipeError: the blocks are in no order, no head trains, or a pattern fits nothing.
    """
    places = place_parameters(model, unwrap(model))
    factors = dict.fromkeys(places, 1.0) | rate_factors(adapter, places)
    if pace.layer_decay != 1:
        _refuse_no_order(model, "layer_decay")
        highest = count_blocks(unwrap(model)) - 1
        for name, place in places.items():
            factors[name] *= decay_of(place, highest, pace.layer_decay)
    if pace.head_rate != 1:
        _refuse_no_head(places.values())
        for name, place in places.items():
            factors[name] *= pace.head_rate if place.head else 1.0
    for name, times in match_groups(pace.groups, places).items():
        factors[name] *= times
    return factors


def decay_of(place: Place, highest: int, ratio: float) -> float:
    """`ratio` to the power of how far a place is below the highest block; 1 there and above."""
    return float(ratio ** max(highest - place.level, 0))


def match_groups(groups: Sequence[GroupSection], names: Iterable[str]) -> dict[str, float]:
    """What the first group whose pattern fits multiplies each parameter's learning rate by.

    Raises:
        RecipeError: a pattern fits no parameter that trains.
    """
    bare = {name: bare_name(name) for name in names}
    for group in groups:
        if not any(fnmatchcase(name, group.match) for name in bare.values()):
            near = nearest(group.match, list(bare.values())) or next(iter(bare.values()))
            raise RecipeError(
                f"train.groups: `{group.match}` fits no parameter that trains",
                hint=f'one is called `{near}`; `"*.mlp.*"` would fit all with `.mlp.` inside',
            )
    return {
        name: group.times
        for name, shown in bare.items()
        for group in [next((g for g in groups if fnmatchcase(shown, g.match)), None)]
        if group is not None
    }


def describe_groups(
    learning: Learning, pace: TrainSection, begins: Sequence[int | str]
) -> tuple[Group, ...]:
    """The parameters of each place, from the top down, in groups that learn alike.

    Args:
        learning: of every parameter that trains.
        pace: what the recipe says of the run.
        begins: the step from which each turn learns.
    """
    counts: dict[Any, int] = {}
    for name, (count, vector) in learning.sizes.items():
        place, times = learning.places[name], learning.factors[name]
        begin = begins[learning.turns.get(name, 0)]
        key = (place, times, 0.0 if vector else pace.weight_decay, begin)
        counts[key] = counts.get(key, 0) + count
    top_down = sorted(counts.items(), key=lambda item: (-item[0][0].level, item[0][0].name))
    return tuple(
        Group(place.name, count, times, _highest(pace, times), decay, begin)
        for (place, times, decay, begin), count in top_down
    )


def show_groups(groups: Sequence[Group]) -> Iterator[str]:
    """The groups as lines of a table, where they are not all alike."""
    if all(group.times == 1 and group.begins == 1 for group in groups):
        return
    yield "what learns, how fast, and from which step:"
    width = max(len(group.name) for group in groups)
    for group in groups:
        rate = group.learning_rate
        shown = rate if isinstance(rate, str) else f"{rate:.3g}"
        yield (
            f"  {group.name:<{width}}  {group.parameters:>11,} parameters  "
            f"{shown:>9} ({group.times:.3g} times)  decay {group.weight_decay:g}  "
            f"from {group.begins}"
        )


def _highest(pace: TrainSection, times: float) -> float | str:
    rate = pace.learning_rate
    return rate if isinstance(rate, str) else rate * times


def _refuse_no_order(model: Any, key: str) -> None:
    if reason := refuse_order(model, unwrap(model)):
        raise RecipeError(
            f"train.{key}: the layers of this model cannot be put in an order: {reason}",
            hint=f"leave `train.{key}` out; `train.groups` names the layers that learn slower",
        )


def _refuse_no_head(places: Iterable[Place]) -> None:
    if not any(place.head for place in places):
        raise RecipeError(
            "train.head_rate: no head trains, as the adapter goes on layers inside the blocks",
            hint="`--set train.head_rate=1`, or a `base.task` with labels",
        )
