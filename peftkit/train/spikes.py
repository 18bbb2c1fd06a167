"""Sudden jumps of loss and gradient norm, told from the steps before: a pure function of the log.

What is usual is the median of the recent steps, and how far they stray is their median absolute
deviation, so that neither a trend nor an earlier jump moves the limit much. Gradient norms stray by
factors, with a long tail upwards, so their logarithms are judged. Skipped steps count
among the recent ones: a level that has shifted for good is taken for usual after half a window.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from peftkit.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

Kind = Literal["loss", "gradient"]

WINDOW = 50
"""Steps that say what is usual."""
FEWEST = 20
"""Steps before which nothing is usual yet."""
DEVIATIONS = {"loss": 8.0, "gradient": 5.0}
"""Normal deviations above the median from which a value is no chance; of the norm's logarithm."""
TIMES = {"loss": 1.5, "gradient": 4.0}
"""Times the median that it must be as well, or where values hardly stray any would be a spike."""
LEAST = {"loss": 0.5, "gradient": 0.0}
"""How much above the median it must be as well; a loss near zero may be many times itself."""
TINY, HUGE = 1e-30, 700.0
"""Of a norm, what stands for zero; of its logarithm, what can still be undone."""
NORMAL = 1.4826
"""Median absolute deviations of a normal distribution in one of its deviations."""


@dataclass(frozen=True, slots=True)
class Spike:
    """One value far above the ones before it."""

    step: int
    kind: Kind
    figure: float
    usual: float
    limit: float

    @property
    def facts(self) -> dict[str, Any]:
        """What `metrics.json` says."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """What happened, in words."""
        what = {"loss": "training loss", "gradient": "gradient norm"}[self.kind]
        return f"{what} {self.figure:.3g} at step {self.step}, usually {self.usual:.3g}"


class SpikeError(RunError):
    """A spike before whose update the run stops, because the recipe says so."""

    def __init__(self, spike: Spike) -> None:
        super().__init__(
            f"training met a spike: {spike.sentence}; it stopped before that update",
            hint=f"step {spike.step - 1} is saved; `--set train.on_spike=skip --allow-change "
            "train.on_spike` goes on without that update",
        )
        self.step = spike.step


@dataclass(slots=True)
class Lookout:
    """What the loop watches over its steps, and what it does at a spike."""

    action: Literal["warn", "skip", "stop"] = "warn"
    blocks: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    """The parameters of each block, whose gradient norms are looked at now and then."""
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Loss and gradient norm of the steps before."""

    def judge(self, step: int, loss: float, norm: float) -> Spike | None:
        """Whether a step is a spike; from then on it is one of the recent ones.

        Raises:
            SpikeError: it is, and the recipe says to stop.
        """
        spike = find_spike(self.recent, step, loss, norm)
        if spike is not None and self.action == "stop":
            raise SpikeError(spike)
        self.recent.append((loss, norm))
        return spike


def find_spike(
    recent: Sequence[tuple[float, float]], step: int, loss: float, norm: float
) -> Spike | None:
    """A spike of the loss, or else of the gradient norm, after the recent steps."""
    if len(recent) < FEWEST:
        return None
    losses, norms = zip(*recent, strict=True)
    kinds: tuple[tuple[Kind, Sequence[float], float], ...] = (
        ("loss", losses, loss),
        ("gradient", norms, norm),
    )
    for kind, values, figure in kinds:
        usual = median(values)
        limit = max(_out_of_reach(kind, values), TIMES[kind] * usual, usual + LEAST[kind])
        if figure > limit:
            return Spike(step, kind, figure, usual, limit)
    return None


def _out_of_reach(kind: Kind, values: Sequence[float]) -> float:
    """What chance does not come to, by how far the values stray."""
    if kind == "gradient":
        values = [math.log(max(value, TINY)) for value in values]
    usual = median(values)
    stray = NORMAL * median(abs(value - usual) for value in values)
    reach = usual + DEVIATIONS[kind] * stray
    return math.exp(min(reach, HUGE)) if kind == "gradient" else reach


def find_spikes(lines: Sequence[Mapping[str, Any]]) -> list[Spike]:
    """Every spike in the lines of `steps.jsonl`, as the run itself met them."""
    recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)
    found = []
    for line in lines:
        figures = (line["loss"], line["grad_norm"])
        if spike := find_spike(recent, line["step"], *figures):
            found.append(spike)
        recent.append(figures)
    return found


def recent_of(lines: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """What a run that goes on after these lines of `steps.jsonl` has seen recently."""
    return [(line["loss"], line["grad_norm"]) for line in lines[-WINDOW:]]
