"""Figures as people read them: digits, signs, units, and what each metric is called.

A true minus sign is used because screen readers pass over a hyphen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from peftkit.disk.size import show_bytes

NOTHING = "\u2013"
"""Shown where there is no figure."""

Kind = Literal["number", "share", "loss"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is called, how it is written, and which way is better."""

    key: str
    label: str
    kind: Kind = "number"
    better: Literal["higher", "lower", "unknown"] = "unknown"

    def show(self, value: float | None) -> str:
        """The value with its unit."""
        if value is None:
            return NOTHING
        if self.kind == "share":
            return f"{_minus(f'{100 * value:.1f}')} %"
        return loss(value) if self.kind == "loss" else figure(value)

    def show_change(self, change: float | None, *, unit: bool = True) -> str:
        """The change with its sign; shares change by points."""
        if change is None:
            return NOTHING
        if self.kind == "share":
            return _minus(f"{100 * change:+.1f}") + (" points" if unit else "")
        bare = loss(change) if self.kind == "loss" else figure(change)
        return f"+{bare}" if change > 0 else bare


_METRICS = (
    Metric("exact_match", "Exact match", "share", "higher"),
    Metric("accuracy", "Accuracy", "share", "higher"),
    Metric("balanced_accuracy", "Balanced accuracy", "share", "higher"),
    Metric("macro_f1", "Macro F1", "number", "higher"),
    Metric("f1", "F1", "number", "higher"),
    Metric("micro_f1", "Micro F1", "number", "higher"),
    Metric("span_f1", "F1 of whole entities", "number", "higher"),
    Metric("exact_set", "All labels right", "share", "higher"),
    Metric("all_tags_right", "All tags right", "share", "higher"),
    Metric("tag_accuracy", "Tags right", "share", "higher"),
    Metric("recall_at_1", "Recall at 1", "share", "higher"),
    Metric("recall_at_10", "Recall at 10", "share", "higher"),
    Metric("mrr", "Mean reciprocal rank", "number", "higher"),
    Metric("spearman", "Rank correlation", "number", "higher"),
    Metric("mean_absolute_error", "Mean absolute error", "number", "lower"),
    Metric("majority", "Always the largest class", "share"),
    Metric("mcc", "Matthews correlation", "number", "higher"),
    Metric("loss", "Loss", "loss", "lower"),
    Metric("loss_per_byte", "Loss per byte", "loss", "lower"),
    Metric("perplexity", "Perplexity", "number", "lower"),
    Metric("stopped", "Stopped by itself", "share", "higher"),
    Metric("repetitive", "Repetitive", "share", "lower"),
)
_BY_KEY = {metric.key: metric for metric in _METRICS}
_ORDER = {metric.key: index for index, metric in enumerate(_METRICS)}

COUNTS = frozenset({"rows", "tokens", "bytes"})
"""Keys of a metrics block that say how much was measured, not how good it was."""


UNITS = {
    "causal-lm": "token",
    "masked-lm": "token",
    "seq2seq": "token",
    "token-classification": "tag",
}
"""What a loss is the mean of, where that is not a row."""


def loss_unit(task: str) -> str:
    """What a loss of a task is measured in."""
    if task == "regression":
        return "the squared error of a row"
    return f"in nats a {UNITS.get(task, 'row')}"


def metric(key: str) -> Metric:
    """What is known of a metric; an unknown one gets a readable label and no direction."""
    return _BY_KEY.get(key) or Metric(key, sentence_case(key.replace("_", " ")))


def in_order(keys: set[str]) -> list[str]:
    """Metrics as a reader wants them: those of the task, then loss, then the rest by name."""
    return sorted(keys - COUNTS, key=lambda key: (_ORDER.get(key, len(_ORDER)), key))


def _minus(shown: str) -> str:
    return shown.replace("-", "\u2212")


def figure(value: float | None, digits: int = 4) -> str:
    """A number to so many significant digits."""
    if value is None:
        return NOTHING
    size = abs(value)
    if size >= 10**digits:
        return _minus(f"{value:,.0f}" if size < 1e15 else f"{value:.{digits - 1}e}")
    if 0 < size < 1e-3:  # learning rates are written like this everywhere
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return _minus(f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}")
    shown = np.format_float_positional(
        value, precision=digits, unique=False, fractional=False, trim="-"
    )
    return _minus(shown)


def loss(value: float | None) -> str:
    """A loss: three decimals, or three significant digits where decimals would say nothing."""
    if value is None or not 0.01 <= abs(value) < 1000:
        return figure(value, 3)
    return _minus(f"{value:.3f}")


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return NOTHING if value is None else f"{round(value):,}"


def plural(value: float | None, one: str, many: str | None = None) -> str:
    """A count and its noun: `1 row`, `2 rows`."""
    return f"{count(value)} {one if value == 1 else many or one + 's'}"


def share(value: float | None) -> str:
    """A share of one as a percentage to three significant digits."""
    return NOTHING if value is None else f"{figure(100 * value, 3)} %"


def size(value: float | None) -> str:
    """Bytes in the binary unit that keeps the number short."""
    return NOTHING if value is None else _minus(show_bytes(value))


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{figure(seconds, 3)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def sentence_case(words: str) -> str:
    """The words with a capital in front, whatever follows left alone."""
    return words[:1].upper() + words[1:]


def stopped(words: str) -> str:
    """The words with a full stop behind, unless they end in one already."""
    words = words.rstrip()
    return words if words.endswith((".", "!", "?", ":")) or not words else f"{words}."


def clipped(words: str, limit: int) -> str:
    """The words, or their beginning and how much was left out."""
    if len(words) <= limit:
        return words
    left = plural(len(words) - limit, "more character")
    return f"{words[:limit].rstrip()} \u2026 ({left})"
