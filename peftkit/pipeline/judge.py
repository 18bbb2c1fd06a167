"""One model on every set the recipe judges by, and samples of what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.evaluate.drift import measure_divergence, measure_update
from peftkit.evaluate.evaluation import Evaluation, evaluate_set
from peftkit.evaluate.generation import Answer, answer_all
from peftkit.evaluate.losses import choose_rows
from peftkit.evaluate.predictions import measure_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.data.example import Example
    from peftkit.fast.paths import Paths
    from peftkit.pipeline.setup import Setup
    from peftkit.pipeline.watch import Watch
    from peftkit.recipe.schema import Recipe

OPENING_TOKENS = 16
"""Tokens of a passage that a continuation starts from."""
CONTINUATION_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Judged:
    """What one model did on every set."""

    sets: dict[str, Evaluation]
    """`validation` and, where there is one, `test`."""
    remember: dict[str, float]
    """Loss per token on each source that must not be forgotten."""
    continuations: Sequence[Answer]
    """What it writes after the opening of held-out passages, where rows are plain text."""
    elsewhere: dict[str, float]
    """Loss per token on the validation rows of other stages, by their names."""

    @property
    def line(self) -> dict[str, Any]:
        """What a line of `evaluations.jsonl` says of it."""
        line: dict[str, Any] = {"loss": self.sets["validation"].rows.per_token}
        return line | ({"remember": self.remember} if self.remember else {})

    @property
    def shown(self) -> Evaluation:
        """The set that samples come from: test rows where there are any."""
        return self.sets.get("test", self.sets["validation"])


def evaluate_all(model: Any, setup: Setup, recipe: Recipe, paths: Paths, watch: Watch) -> Judged:
    """The model on validation, test and remembered rows; the same rows at every call."""
    sets = {"validation": setup.data.validation}
    if setup.data.test is not None:
        sets["test"] = setup.data.test
    judged = {}
    for name, dataset in sets.items():
        watch.say(f"evaluating {min(len(dataset.examples), recipe.evaluate.rows)} {name} rows")
        judged[name] = evaluate_set(
            model,
            dataset.examples,
            setup.tokenizer,
            recipe.evaluate,
            pad_id=setup.pad_id,
            stops=setup.stops,
            losses_of=paths.each,
            task=setup.task,
        )
    remember = measure_remembered(model, setup, recipe, paths)
    shown = judged.get("test", judged["validation"])
    writes = setup.task.packs and not shown.answers
    continuations = _continue(model, setup, recipe, shown.examples) if writes else []
    return Judged(judged, remember, continuations, _elsewhere(model, setup, paths))


def opening(example: Example) -> list[int]:
    """The first tokens of a passage, from which a continuation starts."""
    ids: list[int] = example.tokens[: min(OPENING_TOKENS, max(example.length // 2, 1))].tolist()
    return ids


def measure_remembered(model: Any, setup: Setup, recipe: Recipe, paths: Paths) -> dict[str, float]:
    """Loss on each source that must not be forgotten, with the model as it stands."""
    losses = {}
    for found in setup.data.remember:
        chosen = choose_rows(found.examples, recipe.evaluate.rows)
        rows = measure_rows(
            model,
            chosen,
            setup.tokenizer,
            setup.pad_id,
            losses_of=paths.each,
            task=setup.task,
        )
        losses[chosen[0].source] = rows.per_token
    return losses


def _elsewhere(model: Any, setup: Setup, paths: Paths) -> dict[str, float]:
    measured = {
        name: measure_rows(
            model,
            rows,
            setup.tokenizer,
            setup.pad_id,
            losses_of=paths.each,
            task=setup.task,
        )
        for name, rows in setup.elsewhere.items()
    }
    return {name: rows.per_token for name, rows in measured.items()}


def measure_drift(model: Any, setup: Setup) -> dict[str, Any]:
    """How far the model went from its base: in weights, and in what it predicts of general text."""
    remember = setup.data.remember if setup.task.packs else ()
    return {
        "layers": measure_update(model),
        "divergence": {
            found.examples[0].source: measure_divergence(model, found.examples, setup.pad_id)
            for found in remember
        },
    }


def _continue(
    model: Any, setup: Setup, recipe: Recipe, examples: Sequence[Example]
) -> list[Answer]:
    prompts = [opening(example) for example in examples[: recipe.evaluate.samples]]
    return answer_all(model, prompts, setup.tokenizer, stops=setup.stops, room=CONTINUATION_TOKENS)
