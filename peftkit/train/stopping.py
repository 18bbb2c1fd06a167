"""When a run ends early, and which evaluation was its best: pure functions of what it logged.

A resumed run reads the same lines and decides the same; there is no counter to save. The base's
own figures are line 0 and count as an evaluation: a run that is never better than its base has not
improved.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.recipe.sections.stopping import StoppingSection

    Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run ended before its last step."""

    reason: Literal["patience", "forgetting", "overfitting"]
    step: int
    figure: float
    limit: float
    sentence: str

    @property
    def facts(self) -> dict[str, Any]:
        """What `metrics.json` says."""
        return asdict(self)


def find_stop(evaluations: Lines, steps: Lines, section: StoppingSection) -> Stop | None:
    """The first evaluation that ends the run, and by which rule; None while it goes on.

    Args:
        evaluations: the lines of `evaluations.jsonl`, the base's first.
        steps: those of `steps.jsonl`.
        section: the recipe's.
    """
    for count in range(2, len(evaluations) + 1):
        known = evaluations[:count]
        found = (
            _forgot(known, section.forgetting) if section.forgetting != "none" else None,
            _overfitted(known, steps, section.overfitting)
            if section.overfitting != "none"
            else None,
            _waited(known, section.patience) if section.patience != "none" else None,
        )
        if stop := next(filter(None, found), None):
            return stop
    return None


def best_step(evaluations: Lines, forgetting: float | None = None) -> int | None:
    """The step of the lowest validation loss, the earliest of equals; None without evaluations.

    Where loss on general text may not rise by more than `forgetting`, those that kept to it come
    first; where none did, the one that forgot least.
    """
    trained = [line for line in evaluations if line["step"] > 0]
    if not trained:
        return None
    if forgetting is not None:
        rises = {line["step"]: general_rise(line, evaluations[0])[1] for line in trained}
        kept = [line for line in trained if rises[line["step"]] <= forgetting]
        if not kept:
            return int(min(trained, key=lambda line: rises[line["step"]])["step"])
        trained = kept
    return int(min(trained, key=lambda line: float(line["loss"]))["step"])


def general_rise(line: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, float]:
    """The source of general text whose loss rose most above the base's, and by how much."""
    before, after = base.get("remember", {}), line.get("remember", {})
    rises = {source: after[source] - before[source] for source in before if source in after}
    return max(rises.items(), key=lambda item: item[1], default=("", 0.0))


def is_overfitting(evaluations: Lines, steps: Lines, share: float) -> bool:
    """Whether the last validation loss is so much above the best while training loss went on down.

    Training loss is the mean over the steps since the evaluation before, beside that of the best.
    """
    best = min(evaluations, key=lambda line: float(line["loss"]))
    last = evaluations[-1]
    if best["step"] == 0 or best["loss"] <= 0 or last["loss"] <= (1 + share) * best["loss"]:
        return False
    then, now = _training_loss(evaluations, steps, best), _training_loss(evaluations, steps, last)
    return now < then


def _training_loss(evaluations: Lines, steps: Lines, line: Mapping[str, Any]) -> float:
    earlier = max(each["step"] for each in evaluations if each["step"] < line["step"])
    return fmean(step["loss"] for step in steps if earlier < step["step"] <= line["step"])


def _forgot(known: Lines, limit: float) -> Stop | None:
    source, rise = general_rise(known[-1], known[0])
    if rise <= limit:
        return None
    said = f"loss on `{source}` rose by {rise:.3f} nats above the base's, more than {limit:g}"
    return Stop("forgetting", known[-1]["step"], rise, limit, said)


def _overfitted(known: Lines, steps: Lines, share: float) -> Stop | None:
    if not is_overfitting(known, steps, share):
        return None
    best, last = min(float(line["loss"]) for line in known), known[-1]
    said = (
        f"validation loss is {last['loss']:.3f}, its best was {best:.3f}, and training loss "
        "went on falling"
    )
    return Stop("overfitting", last["step"], last["loss"] / best - 1, share, said)


def _waited(known: Lines, patience: int) -> Stop | None:
    losses = [float(line["loss"]) for line in known]
    at = losses.index(min(losses))
    waited = len(losses) - 1 - at
    if waited < patience:
        return None
    where = f"at step {known[at]['step']}" if known[at]["step"] else "of the base"
    said = (
        f"{waited} evaluation{'s' * (waited != 1)} in a row did not come below the validation "
        f"loss {where}, {losses[at]:.3f}"
    )
    return Stop("patience", known[-1]["step"], waited, patience, said)
