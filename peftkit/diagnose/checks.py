"""The checks: each reads plain figures of a finished run and says what it found, also when fine.

Every threshold stands here, written down before the runs it judges.
"""

from __future__ import annotations

from statistics import fmean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftkit.diagnose.finding import Finding
from peftkit.report.wording import UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORGETTING = 0.2
"""Nats per token that loss on general text may rise."""
OVERFITTING = 0.05
"""Share above its best value that validation loss may end."""
GAP = 0.5
"""Nats per token that training loss may lie below validation loss when it has turned up."""
STOPPING = 0.9
"""Share of answers that must end with the stop token."""
REPEATING = 0.1
"""Share of answers that may end in a loop."""
SPIKE = 1.5
"""Ratio of a later loss to the first one from which training was unstable."""
STILL_FALLING = 0.05
"""Share by which validation loss still fell between the last two evaluations."""
WORTH_MORE = 0.02
"""Nats per token below which a fall is not worth more steps, whatever its share."""


def _unit_of(metrics: Mapping[str, Any]) -> str:
    """What a loss is the mean of."""
    return UNITS.get(metrics.get("task", "causal-lm"), "row")


def check_effect(metrics: Mapping[str, Any]) -> Finding:
    """Whether the adapter changed anything, for better or worse."""
    difference = metrics["difference"]
    where = "test" if "test" in difference else "validation"
    change = difference[where]["loss"]
    figure, low, high = change["change"], change["low"], change["high"]
    interval = (
        f"{figure:+.3f} nats per {_unit_of(metrics)} on {where} rows ({low:+.3f} to {high:+.3f})"
    )
    if low <= 0 <= high:
        return Finding(
            "no-effect",
            "warning",
            figure,
            0.0,
            f"the adapter changed the loss by {interval}: the interval includes no change",
            "train longer or raise `train.learning_rate`; check with `peftkit preview` that the "
            "tokens you mean carry loss",
        )
    if figure > 0:
        return Finding(
            "made-worse",
            "problem",
            figure,
            0.0,
            f"the adapter made the loss worse by {interval}",
            "lower `train.learning_rate`, and compare training and validation rows: they may not "
            "be alike",
        )
    return Finding("no-effect", "ok", figure, 0.0, f"the adapter changed the loss by {interval}")


def check_forgetting(metrics: Mapping[str, Any]) -> Finding | None:
    """Whether general text that had to be remembered got harder."""
    rises = {
        item["source"]: item["after"]["loss"] - item["before"]["loss"]
        for item in metrics.get("remember", [])
    }
    if not rises:
        return None
    source = max(rises, key=lambda name: rises[name])
    rise = rises[source]
    sentence = f"loss on `{source}` went up by {rise:+.3f} nats per {_unit_of(metrics)}"
    if rise <= FORGETTING:
        return Finding("forgetting", "ok", rise, FORGETTING, sentence)
    return Finding(
        "forgetting",
        "warning" if rise <= 5 * FORGETTING else "problem",
        rise,
        FORGETTING,
        f"{sentence}: the model forgets what it knew",
        "lower `train.learning_rate` or `train.steps`, or mix general text in with `data.replay`",
    )


def check_overfitting(
    evaluations: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any] = MappingProxyType({}),
) -> Finding | None:
    """Whether validation loss turned up while training loss went on falling."""
    trained = [line for line in evaluations if line["step"] > 0]
    if len(trained) < 2:
        return None
    best = min(trained, key=lambda line: float(line["loss"]))
    last = trained[-1]
    rise = last["loss"] / best["loss"] - 1 if best["loss"] > 0 else 0.0
    recent = fmean(line["loss"] for line in steps[-10:])
    sentence = (
        f"validation loss ended {100 * rise:.1f} % above its best, {best['loss']:.3f} at step "
        f"{best['step']}; training loss was {recent:.3f} at the end"
    )
    if rise <= OVERFITTING or last["loss"] - recent < GAP:
        return Finding("overfitting", "ok", rise, OVERFITTING, sentence)
    if metrics.get("steps", {}).get("kept", {}).get("steps") == [best["step"]]:
        kept = f"{sentence}; the weights of step {best['step']} were kept"
        return Finding("overfitting", "note", rise, OVERFITTING, kept, "more rows would help")
    return Finding(
        "overfitting",
        "warning",
        rise,
        OVERFITTING,
        sentence,
        f"keep the best with `train.keep_best: on`, or stop at step {best['step']} "
        f"(`--set train.steps={best['step']}`), or add rows",
    )


def check_length(evaluations: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Whether the run ended while validation loss was still falling fast."""
    trained = [line for line in evaluations if line["step"] > 0]
    if len(trained) < 2 or trained[-2]["loss"] <= 0:
        return None
    fall = 1 - trained[-1]["loss"] / trained[-2]["loss"]
    sentence = f"validation loss fell by {100 * fall:.1f} % between the last two evaluations"
    if fall <= STILL_FALLING or trained[-2]["loss"] - trained[-1]["loss"] < WORTH_MORE:
        return Finding("stopped-too-early", "ok", fall, STILL_FALLING, sentence)
    return Finding(
        "stopped-too-early",
        "note",
        fall,
        STILL_FALLING,
        f"{sentence}: it had not settled",
        "more `train.steps` would probably help",
    )


def check_learning_rate(steps: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Whether training loss rose well above where it began."""
    if len(steps) < 10:
        return None
    losses = [float(line["loss"]) for line in steps]
    start = fmean(losses[:3])
    worst = max(fmean(losses[at : at + 3]) for at in range(3, len(losses) - 2))
    ratio = worst / start if start > 0 else 1.0
    sentence = f"training loss never rose above {ratio:.2f} times its start"
    if ratio <= SPIKE:
        return Finding("learning-rate-too-high", "ok", ratio, SPIKE, sentence)
    return Finding(
        "learning-rate-too-high",
        "warning",
        ratio,
        SPIKE,
        f"training loss rose to {ratio:.2f} times its start",
        "lower `train.learning_rate` to a third, or raise `train.warmup`",
    )


def check_answers(metrics: Mapping[str, Any]) -> list[Finding]:
    """Whether answers end by themselves and do not loop."""
    figures = metrics.get("test") or metrics["validation"]
    if "stopped" not in figures:
        return []
    stopped, looping = figures["stopped"], figures["repetitive"]
    stop_sentence = f"{100 * stopped:.1f} % of answers ended with the stop token"
    loop_sentence = f"{100 * looping:.1f} % of answers ended in a loop"
    return [
        Finding("stop-token", "ok", stopped, STOPPING, stop_sentence)
        if stopped >= STOPPING
        else Finding(
            "stop-token",
            "warning",
            stopped,
            STOPPING,
            stop_sentence,
            "`peftkit preview` shows whether the stop token carries loss; train longer if it does",
        ),
        Finding("repetition", "ok", looping, REPEATING, loop_sentence)
        if looping <= REPEATING
        else Finding(
            "repetition",
            "warning",
            looping,
            REPEATING,
            loop_sentence,
            "lower `train.learning_rate`, or train on more varied answers",
        ),
    ]
