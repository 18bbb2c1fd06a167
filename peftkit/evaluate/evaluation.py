"""One model on one set of rows: losses, and what it decides or answers where rows expect that."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.data.task import CAUSAL, Task
from peftkit.errors import RecipeError
from peftkit.evaluate.generation import Answer, answer_all, is_repetitive, prompt_of, room_for
from peftkit.evaluate.losses import RowLosses, choose_rows, measure_losses
from peftkit.evaluate.metrics import FIGURES, METRIC, decide, figures_of, hits_of
from peftkit.evaluate.predictions import predict_all
from peftkit.fast.loss import each_loss

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example
    from peftkit.evaluate.losses import LossesFunction
    from peftkit.recipe.sections.evaluate import EvaluateSection

SHORT_ANSWER = 64
"""Tokens up to which an answer is short enough to be compared word for word."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model did on each row of a set."""

    examples: Sequence[Example]
    rows: RowLosses
    answers: Sequence[Answer] = ()
    """One a row, or none at all."""
    task: Task = CAUSAL
    hits: NDArray[np.float64] | None = None
    """Of decisions: 1 where a row went right, 0 elsewhere."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else is measured of decisions."""

    @property
    def metric(self) -> str:
        """What the share of rows that went right is called."""
        return METRIC.get(self.task.name, "exact_match")

    @property
    def right(self) -> NDArray[np.float64] | None:
        """1 where the answer is the expected one, 0 elsewhere; None without answers."""
        if self.task.name in FIGURES:
            return self.hits
        if not self.answers:
            return None
        pairs = zip(self.examples, self.answers, strict=True)
        return np.array([float(a.text.strip() == (e.answer or "").strip()) for e, a in pairs])

    def without(self, digests: Collection[str]) -> Evaluation:
        """The same of the other rows, without the figures that are no means over rows."""
        left = [at for at, example in enumerate(self.examples) if example.digest not in digests]
        rows = self.rows
        return replace(
            self,
            examples=[self.examples[at] for at in left],
            rows=RowLosses(rows.losses[left], rows.tokens[left], rows.bytes[left]),
            answers=[self.answers[at] for at in left] if self.answers else (),
            hits=None if self.hits is None else self.hits[left],
            figures={},
        )

    @property
    def summary(self) -> dict[str, Any]:
        """What `metrics.json` says of this set."""
        loss = self.rows.per_token
        if self.task.name in FIGURES:
            share = {} if self.right is None else {self.metric: float(self.right.mean())}
            return {"rows": len(self.examples), "loss": loss, **share, **self.figures}
        figures: dict[str, Any] = {
            "rows": len(self.examples),
            "tokens": int(self.rows.tokens.sum()),
            "bytes": int(self.rows.bytes.sum()),
            "loss": loss,
            "loss_per_byte": self.rows.per_byte,
            "perplexity": math.exp(min(loss, 700.0)),
        }
        if self.task.name == "masked-lm":  # a share of the tokens is not comparable with all bytes
            figures = {key: value for key, value in figures.items() if "byte" not in key}
        if (right := self.right) is not None:
            figures[self.metric] = float(right.mean())
            figures["stopped"] = float(np.mean([answer.stopped for answer in self.answers]))
            figures["repetitive"] = float(np.mean([is_repetitive(a.text) for a in self.answers]))
        return figures


def evaluate_set(  # noqa: PLR0913 - what a figure depends on, and nothing besides
    model: Any,
    examples: Sequence[Example],
    tokenizer: Any,
    section: EvaluateSection,
    *,
    pad_id: int,
    stops: frozenset[int],
    losses_of: LossesFunction = each_loss,
    task: Task = CAUSAL,
) -> Evaluation:
    """The model on the chosen rows of a set, the same rows whichever model it is."""
    chosen = choose_rows(examples, section.rows)
    if task.name in FIGURES:
        return _evaluate_decisions(model, chosen, task, pad_id)
    rows = measure_losses(model, chosen, tokenizer, pad_id, losses_of=losses_of, task=task)
    if not wants_answers(chosen, section):
        return Evaluation(chosen, rows, task=task)
    prompts = [prompt_of(example) for example in chosen]
    answers = answer_all(model, prompts, tokenizer, stops=stops, room=room_for(chosen))
    return Evaluation(chosen, rows, answers, task)


def _evaluate_decisions(
    model: Any, examples: Sequence[Example], task: Task, pad_id: int
) -> Evaluation:
    found = predict_all(model, examples, task, pad_id)
    counts = np.array([task.count(example) for example in examples], np.int64)
    return Evaluation(
        examples,
        RowLosses(found.losses, counts, np.zeros_like(counts)),
        [Answer(text, 0, stopped=True) for text in decide(found, examples, task)],
        task,
        hits_of(found, examples, task),
        figures_of(found, examples, task),
    )


def wants_answers(examples: Sequence[Example], section: EvaluateSection) -> bool:
    """Whether answers are generated and compared: asked for, or all rows have a short one."""
    unasked = [e.where for e in examples if e.answer is None or not e.prompt_tokens]
    if section.metrics != "auto":
        if "exact_match" in section.metrics and unasked:
            raise RecipeError(
                "evaluate.metrics: `exact_match` needs rows with a prompt and an answer; "
                f"{len(unasked)} of {len(examples)} have none, e.g. {unasked[0]}",
                hint="`auto` measures it where it can be",
            )
        return "exact_match" in section.metrics
    return not unasked and all(e.length - e.prompt_tokens <= SHORT_ANSWER for e in examples)
