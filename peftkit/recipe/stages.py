"""A recipe with stages, every stage made whole: what the top says for all, and its own over it.

The sections at the top of what comes out are those of the last stage, because the result is of it:
whoever reads a recipe without asking for stages learns what was trained in the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from peftkit.recipe.layers import Layer, merge
from peftkit.recipe.quantized import spell_out
from peftkit.recipe.sections.stages import BASE, PREVIOUS, SECTIONS

if TYPE_CHECKING:
    from peftkit.recipe.strict_yaml import Location

STAGES = "stages"


class StagedLayer(Layer):
    """Values of stages, most of which were written once for all of them."""

    @override
    def home(self, location: Location) -> Location:
        if location[:1] == (STAGES,):
            own, shared = location, location[2:]
        else:
            own, shared = (STAGES, len(self.values[STAGES]) - 1, *location), location
        if not shared or shared[0] not in SECTIONS:
            return location
        return own if self._written(own) - 2 >= self._written(shared) else shared

    def _written(self, location: Location) -> int:
        """How far down the way to `location` was written."""
        depths = range(len(location), 0, -1)
        return next((depth for depth in depths if location[:depth] in self.origins), 0)


def spread(layer: Layer) -> Layer:
    """The layer with each stage whole, and the sections of the last one at the top."""
    stages = layer.values.get(STAGES)
    if not isinstance(stages, tuple) or not stages:
        return layer
    shared = {key: layer.values[key] for key in SECTIONS if key in layer.values}
    whole = tuple(_whole(stage, shared, first=not number) for number, stage in enumerate(stages))
    last = whole[-1] if isinstance(whole[-1], dict) else {}
    top = {key: last[key] for key in SECTIONS if key in last}
    return StagedLayer({**layer.values, **top, STAGES: whole}, layer.origins)


def spell_out_stages(values: dict[str, Any]) -> dict[str, Any]:
    """What a recipe says, with `qlora` in its stages said as what it is short for.

    Raises:
        ValidationError: the base of a stage is said to be something else.
    """
    stages = values.get(STAGES)
    if not isinstance(stages, tuple):
        return values
    spelled = tuple(
        spell_out(stage, (STAGES, number)) if isinstance(stage, dict) else stage
        for number, stage in enumerate(stages)
    )
    return {**values, STAGES: spelled}


def in_a_run(path: Location) -> Location:
    """A place in a stage as the place in a recipe that means the same."""
    inside = path[:1] == (STAGES,) and len(path) > 2 and path[2] in SECTIONS
    return path[2:] if inside else path


def _whole(stage: Any, shared: dict[str, Any], *, first: bool) -> Any:
    if not isinstance(stage, dict):
        return stage
    sections = {
        key: merge(shared.get(key), stage[key], key) if key in stage else shared[key]
        for key in SECTIONS
        if key in stage or key in shared
    }
    start = stage.get("start_from", "auto")
    start = (BASE if first else PREVIOUS) if start == "auto" else start
    how = stage.get("as", "auto")
    how = "continued" if how == "auto" and start != BASE else how
    return {**stage, **sections, "start_from": start, "as": how}
