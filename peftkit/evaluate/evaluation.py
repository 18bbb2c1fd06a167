"""One model on one set of rows: losses, and answers where rows have a prompt and a short answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from peftkit.errors import RecipeError
from peftkit.evaluate.generation import answer_all, is_repetitive, prompt_of, room_for
from peftkit.evaluate.losses import RowLosses, choose_rows, measure_losses
from peftkit.fast.loss import token_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from peftkit.data.example import Example
    from peftkit.evaluate.generation import Answer
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

    @property
    def right(self) -> NDArray[np.float64] | None:
        """1 where the answer is the expected one, 0 elsewhere; None without answers."""
        if not self.answers:
            return None
        pairs = zip(self.examples, self.answers, strict=True)
        return np.array([float(a.text.strip() == (e.answer or "").strip()) for e, a in pairs])

    @property
    def summary(self) -> dict[str, Any]:
        """What `metrics.json` says of this set."""
        loss = self.rows.per_token
        figures: dict[str, Any] = {
            "rows": len(self.examples),
            "tokens": int(self.rows.tokens.sum()),
            "bytes": int(self.rows.bytes.sum()),
            "loss": loss,
            "loss_per_byte": self.rows.per_byte,
            "perplexity": math.exp(min(loss, 700.0)),
        }
        if (right := self.right) is not None:
            figures["exact_match"] = float(right.mean())
            figures["stopped"] = float(np.mean([answer.stopped for answer in self.answers]))
            figures["repetitive"] = float(np.mean([is_repetitive(a.text) for a in self.answers]))
        return figures


def evaluate_set(
    model: Any,
    examples: Sequence[Example],
    tokenizer: Any,
    section: EvaluateSection,
    *,
    pad_id: int,
    stops: frozenset[int],
    losses_of: LossesFunction = token_losses,
) -> Evaluation:
    """The model on the chosen rows of a set, the same rows whichever model it is."""
    chosen = choose_rows(examples, section.rows)
    rows = measure_losses(model, chosen, tokenizer, pad_id, losses_of=losses_of)
    if not wants_answers(chosen, section):
        return Evaluation(chosen, rows)
    prompts = [prompt_of(example) for example in chosen]
    answers = answer_all(model, prompts, tokenizer, stops=stops, room=room_for(chosen))
    return Evaluation(chosen, rows, answers)


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
