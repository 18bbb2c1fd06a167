"""What a report knows about a run, as frozen facts; `read_run` gets them from a run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peftkit.report.tolerant import Loose

Interval = tuple[float, float]

SEVERITIES = ("problem", "warning", "note", "ok")
"""What a finding may be, worst first."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A file of the run folder that could not be used, and what the report lacks for it."""

    file: str
    problem: str
    effect: str


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step."""

    step: int
    loss: float | None
    grad_norm: float | None
    learning_rate: float | None
    penalty: Mapping[str, float | None] = field(default_factory=dict)
    """What was added to the loss, by name."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One validation loss while training; step 0 is the base."""

    step: int
    loss: float
    interval: Interval | None
    remembered: Mapping[str, float] = field(default_factory=dict)
    """Loss on each source that must not be forgotten, where it was measured as well."""


@dataclass(frozen=True, slots=True)
class Spike:
    """One step whose loss or gradient norm was far above those before it."""

    step: int
    kind: str
    figure: float


@dataclass(frozen=True, slots=True)
class RangeTest:
    """How a learning rate was found."""

    suggestion: float
    rates: tuple[float, ...]
    losses: tuple[float | None, ...]
    smoothed: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Metrics of one model on one split."""

    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """What the adapter did to one metric of one split."""

    metric: str
    base: float | None
    adapted: float | None
    change: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Remembered:
    """Loss on something that must not be forgotten, before and after."""

    source: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Speed:
    """What training took."""

    tokens_per_second: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    tokens: float | None = None
    peak_memory_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What was planned before the first step."""

    parameters: float | None = None
    trainable: float | None = None
    share: float | None = None
    rows: float | None = None
    tokens_per_epoch: float | None = None
    steps: float | None = None
    epochs: float | None = None
    rows_per_step: float | None = None
    tokens_per_step: float | None = None
    disk_bytes: float | None = None
    memory_training: float | None = None
    memory_evaluation: float | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """What one split of the data holds; `skipped` and `sources` are (name, detail) rows."""

    name: str
    rows: float | None
    tokens: float | None
    trained_tokens: float | None
    longest: float | None
    cut: float | None
    dropped: float | None
    fill: float | None
    copies: float | None
    """Changed copies among the rows."""
    skipped: tuple[tuple[str, str], ...]
    sources: tuple[tuple[str, float | None, float | None], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """How much of the run one source was; `asked` is of the tokens, where a share was asked for."""

    source: str
    origin: str
    rows: float | None
    tokens: float | None
    share: float | None
    asked: float | None
    times: float | None


@dataclass(frozen=True, slots=True)
class OfOrigin:
    """One metric on the rows of one origin, before and after."""

    split: str
    origin: str
    rows: float | None
    metric: str
    base: float | None
    adapted: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows of different splits that are the same or nearly."""

    kind: str
    similarity: float | None
    left: str
    right: str
    text: str


@dataclass(frozen=True, slots=True)
class Leakage:
    """How many rows of one split are in another."""

    exact: int
    near: int
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked, and what to do about it."""

    id: str
    severity: str
    figure: float | None
    threshold: float | None
    sentence: str
    advice: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt, answered by the base and by the adapted model."""

    where: str
    prompt: str
    expected: str | None
    before: str | None
    after: str | None
    right: bool | None


@dataclass(frozen=True, slots=True)
class Stage:
    """One of several trainings of a run."""

    name: str
    start: str
    how: str
    task: str
    method: str
    learning_rate: float | None
    tokens: float | None
    seconds: float | None
    before: float | None
    """Loss on its own validation rows, of what it started from."""
    after: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a report says about one run."""

    name: str
    folder: str
    recipe: str | None
    resolved: Mapping[str, str]
    lock: Loose
    plan: Plan | None
    splits: tuple[Split, ...]
    leakage: Leakage | None
    seen: tuple[Seen, ...]
    by_origin: tuple[OfOrigin, ...]
    data: Loose
    """What else `data.json` says of the rows."""
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluation, ...]
    finder: RangeTest | None
    helped: str | None
    sentence: str | None
    adapted: Mapping[str, Scores]
    baselines: Mapping[str, Mapping[str, Scores]]
    changes: Mapping[str, tuple[Change, ...]]
    clean_changes: Mapping[str, tuple[Change, ...]]
    """Of each split that leaked in part, the same on the rows that did not."""
    remembered: tuple[Remembered, ...]
    speed: Speed
    findings: tuple[Finding, ...]
    samples: tuple[Sample, ...]
    adapter_bytes: int | None
    missing: tuple[Missing, ...]
    stages: tuple[Stage, ...] = ()
    stage_losses: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """By stage whose validation rows these are, and then of the base and of each stage."""
    final_needs: tuple[str, ...] = ()
    """Stages without whose adapters the final one means little."""
    spikes: tuple[Spike, ...] = ()
    drift: Mapping[str, float] = field(default_factory=dict)
    """By block, the norm of what changed over that of the weights."""
    stopped: str | None = None
    """Why the run ended before its last step."""
    kept: str = "last"
    """Which weights it ended with: `last`, `best`, `mean` or `exponential mean`."""
    kept_steps: tuple[int, ...] = ()

    @property
    def split(self) -> str:
        """The split the report judges by: `test` where it was measured, else `validation`."""
        return "test" if self.changes.get("test") or self.adapted.get("test") else "validation"
