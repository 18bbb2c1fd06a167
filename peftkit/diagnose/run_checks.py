"""The checks of how a run went: spikes, how far the weights and the predictions moved, the stop.

As in `checks`, every threshold stands here, with the runs that it was set on: a base of 260,032
parameters taught Python by LoRA for 150 steps, at learning rates a factor of ten apart. What an
older run did not write down is not judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.diagnose.finding import Finding
from peftkit.train.spikes import find_spikes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.train.spikes import Spike

MANY = 0.01
"""Share of the steps that may be spikes before more than a note is due."""
EXPLODED = 1.0
"""Norm of the update over that of the weights: 0.01 to 0.4 where training went well, 23 at a rate
ten times the best."""
COLLAPSED = 1e-4
"""Below it an update hardly moves an output: a hundredth of what a rate far too low came to."""
DRIFT = 0.5
"""Nats by which predictions on general text may differ from the base's: 0.2 where loss on it rose
by 0.2, 1.2 where it rose by 1.1."""
AT_ONCE = 0.2
"""Share of the planned steps before which a stop came almost at once."""


def check_spikes(steps: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Whether loss or gradient norm jumped on the way."""
    spikes = find_spikes(steps)
    loss = [spike for spike in spikes if spike.kind == "loss"]
    gradient = [spike for spike in spikes if spike.kind == "gradient"]
    return [_check_loss(loss, steps), _check_gradient(gradient, steps)]


def _check_loss(spikes: Sequence[Spike], steps: Sequence[Mapping[str, Any]]) -> Finding:
    share = len(spikes) / max(len(steps), 1)
    if not spikes:
        fine = "the training loss never jumped far above its usual"
        return Finding("loss-spike", "ok", share, MANY, fine)
    return Finding(
        "loss-spike",
        "warning" if share > MANY else "note",
        share,
        MANY,
        f"the training loss jumped {_describe(spikes, steps)}",
        "look at the rows of the worst step; lower `train.learning_rate`, or leave such updates "
        "out with `train.on_spike: skip`",
    )


def _check_gradient(spikes: Sequence[Spike], steps: Sequence[Mapping[str, Any]]) -> Finding:
    share = len(spikes) / max(len(steps), 1)
    if not spikes:
        fine = "the gradient norm never jumped far above its usual"
        return Finding("gradient-spike", "ok", share, MANY, fine)
    return Finding(
        "gradient-spike",
        "warning" if share > MANY else "note",
        share,
        MANY,
        f"the gradient norm jumped {_describe(spikes, steps)}",
        "look at the rows of the worst step; lower `train.learning_rate` or "
        "`train.max_grad_norm`, or leave such updates out with `train.on_spike: skip`",
    )


def _describe(spikes: Sequence[Spike], steps: Sequence[Mapping[str, Any]]) -> str:
    """How often, and how bad the worst was."""
    worst = max(spikes, key=lambda spike: spike.figure / max(spike.usual, 1e-9))
    times = f"{len(spikes)} time{'s' * (len(spikes) != 1)}"
    by_step = {line["step"]: line for line in steps}
    blocks = by_step[worst.step].get("blocks") or {}
    where = f", most of it in `{max(blocks, key=lambda each: blocks[each])}`" if blocks else ""
    skipped = sum(bool(by_step[spike.step].get("skipped")) for spike in spikes)
    left_out = f"; {skipped} of these updates were left out" if skipped else ""
    return f"{times}, worst was {worst.sentence}{where}{left_out}"


def check_update(metrics: Mapping[str, Any]) -> list[Finding]:
    """Whether the weights moved too far, or not at all."""
    layers = (metrics.get("drift") or {}).get("layers")
    if not layers:
        return []
    most = max(layers, key=lambda name: float(layers[name]))
    figure = layers[most]
    said = f"the weights of `{most}` changed most, by {100 * figure:.3g} % of their norm"
    exploded = Finding("update-exploded", "ok", figure, EXPLODED, said)
    collapsed = Finding("update-collapsed", "ok", figure, COLLAPSED, said)
    if figure > EXPLODED:
        exploded = Finding(
            "update-exploded",
            "warning",
            figure,
            EXPLODED,
            f"{said}: the update is larger than what it is added to",
            "lower `train.learning_rate` to a tenth; what the base knew is hardly in there any "
            "more",
        )
    if figure < COLLAPSED:
        collapsed = Finding(
            "update-collapsed",
            "warning",
            figure,
            COLLAPSED,
            f"{said}: the model is the base still",
            "raise `train.learning_rate`, train longer, and check with `peftkit preview` that "
            "tokens carry loss",
        )
    return [exploded, collapsed]


def check_drift(metrics: Mapping[str, Any]) -> Finding | None:
    """Whether the model predicts other things of general text than its base does."""
    found = (metrics.get("drift") or {}).get("divergence")
    if not found:
        return None
    source = max(found, key=lambda name: float(found[name]))
    figure = found[source]
    said = f"predictions on `{source}` are {figure:.3f} nats per token from the base's"
    if figure <= DRIFT:
        return Finding("drift", "ok", figure, DRIFT, said)
    return Finding(
        "drift",
        "note" if figure <= 5 * DRIFT else "warning",
        figure,
        DRIFT,
        f"{said}: the model behaves otherwise also where it was taught nothing",
        "mix general text in with `data.replay`, lower `train.learning_rate`, or stop in time "
        "with `train.early_stopping: {forgetting: 0.2}`",
    )


def check_stop(metrics: Mapping[str, Any]) -> Finding | None:
    """Whether a run that ended early did so almost at once."""
    steps = metrics.get("steps")
    if not steps or not steps["stopped"]:
        return None
    share, why = steps["taken"] / steps["planned"], steps["stopped"]["sentence"]
    said = f"the run stopped after {steps['taken']} of {steps['planned']} steps: {why}"
    if share >= AT_ONCE:
        return Finding("stopped-too-early", "ok", share, AT_ONCE, said)
    advice = {
        "patience": "lower `train.learning_rate`, or give it more `patience`: validation loss may "
        "rise while the learning rate warms up",
        "overfitting": "lower `train.learning_rate`, or add rows",
        "forgetting": "lower `train.learning_rate`, or mix general text in with `data.replay`",
    }
    return Finding(
        "stopped-too-early", "warning", share, AT_ONCE, said, advice[steps["stopped"]["reason"]]
    )
