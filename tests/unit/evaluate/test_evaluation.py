"""What a model did on a set: losses always, answers where something can be compared with them."""

import math
from typing import Any

import numpy as np
import pytest

from peftkit.data.example import Example
from peftkit.data.task import Task
from peftkit.errors import RecipeError
from peftkit.evaluate.evaluation import SHORT_ANSWER, Evaluation, evaluate_set, wants_answers
from peftkit.evaluate.generation import Answer, answer_all
from peftkit.evaluate.losses import RowLosses, choose_rows, measure_losses
from peftkit.recipe.sections.evaluate import EvaluateSection

STOPS = frozenset({2})


def asked(prompt: int, answer: int, *, text: str = "a", where: str = "f:1") -> Example:
    length = prompt + answer
    trained = np.arange(length) >= max(prompt, 1)
    tokens = (np.arange(length) % 250 + 6).astype(np.int32)
    return Example(tokens, trained, where, where, where, prompt, "ask", text)


def plain(length: int = 8, where: str = "f:1") -> Example:
    return Example(np.arange(6, 6 + length), np.arange(length) > 0, where, where, where)


def section(**values: Any) -> EvaluateSection:
    return EvaluateSection.model_validate(values)


def judged(expected: list[str | None], said: list[str], stopped: list[bool]) -> Evaluation:
    examples = [asked(2, 3, text=text) for text in expected]  # type: ignore[arg-type]
    count = np.ones(len(examples), np.int64)
    answers = [Answer(text, 1, stop) for text, stop in zip(said, stopped, strict=True)]
    return Evaluation(examples, RowLosses(count.astype(float), count, count), answers)


def test_an_answer_is_right_word_for_word() -> None:
    evaluation = judged(
        ["yes", "yes", " yes", "two words", "", None],
        ["yes", "Yes", "yes\n ", "two  words", "", "x"],
        [True] * 6,
    )
    assert evaluation.right is not None
    assert evaluation.right.tolist() == [1, 0, 1, 0, 1, 0]
    assert evaluation.summary["exact_match"] == 0.5


def test_the_share_of_answers_that_stop_or_loop_is_told() -> None:
    said = ["yes", "no no no no", "yes", "go on go on go on go on"]
    summary = judged(["yes"] * 4, said, [True, False, True, True]).summary
    assert (summary["stopped"], summary["repetitive"], summary["exact_match"]) == (0.75, 0.5, 0.5)


def test_rows_can_be_left_out_without_measuring_anew() -> None:
    examples = [asked(2, 3, text="yes", where=f"f:{number}") for number in range(4)]
    rows = RowLosses(np.array([1.0, 2, 4, 8]), np.array([1, 1, 2, 2]), np.array([1, 1, 1, 1]))
    answers = [Answer(text, 1, stopped=True) for text in ("yes", "no", "yes", "yes")]
    left = Evaluation(examples, rows, answers).without({"f:0", "f:3", "elsewhere"})
    assert [example.where for example in left.examples] == ["f:1", "f:2"]
    assert (left.summary["rows"], left.summary["loss"]) == (2, 2.0)
    assert left.summary["exact_match"] == 0.5
    task = Task("classification", ("a", "b"))
    hits = np.array([1.0, 0, 0, 0])
    decided = Evaluation(examples, rows, answers, task, hits, {"macro_f1": 0.3}).without({"f:1"})
    assert decided.summary == {"rows": 3, "loss": 13 / 5, "accuracy": 1 / 3}
    assert decided.without({"f:0", "f:2", "f:3"}).examples == []


def test_a_summary_is_made_of_sums_over_rows() -> None:
    rows = RowLosses(np.array([2.0, 4.0]), np.array([1, 3]), np.array([4, 8]))
    evaluation = Evaluation([plain(), plain()], rows)
    assert evaluation.right is None
    assert evaluation.summary == {
        "rows": 2,
        "tokens": 4,
        "bytes": 12,
        "loss": 1.5,
        "loss_per_byte": 0.5,
        "perplexity": math.exp(1.5),
    }


def test_a_loss_beyond_counting_has_a_finite_perplexity() -> None:
    rows = RowLosses(np.array([1e6]), np.array([1]), np.array([1]))
    assert math.isfinite(Evaluation([plain()], rows).summary["perplexity"])


@pytest.mark.parametrize(
    ("examples", "wanted"),
    [
        ([asked(2, 3), asked(4, SHORT_ANSWER)], True),
        ([asked(2, 3), asked(4, SHORT_ANSWER + 1)], False),
        ([asked(2, 3), plain()], False),
        ([asked(0, 3)], False),  # a completion of nothing, by a tokenizer that adds nothing
        ([plain()], False),
    ],
)
def test_answers_are_compared_where_all_are_short(examples: list[Example], *, wanted: bool) -> None:
    assert wants_answers(examples, section()) is wanted


def test_answers_are_compared_where_the_recipe_says_so() -> None:
    long = [asked(2, SHORT_ANSWER + 9), asked(2, 3)]
    assert not wants_answers(long, section())
    assert wants_answers(long, section(metrics=("exact_match",)))
    assert wants_answers(long, section(metrics=("loss", "exact_match")))
    assert not wants_answers([asked(2, 3)], section(metrics=("loss",)))
    assert not wants_answers([plain()], section(metrics=("loss",)))


@pytest.mark.parametrize("bad", [plain(where="f:7"), asked(0, 3, where="f:7")])
def test_rows_without_an_answer_cannot_be_compared(bad: Example) -> None:
    with pytest.raises(RecipeError) as refusal:
        wants_answers([asked(2, 3), bad], section(metrics=("exact_match",)))
    assert refusal.value.exit_code == 2
    assert refusal.value.message.startswith("evaluate.metrics: `exact_match` needs rows")
    assert "1 of 2 have none, e.g. f:7" in refusal.value.message


def test_a_set_is_judged_by_its_chosen_rows(model: Any, tokenizer: Any) -> None:
    examples = [asked(2 + number % 3, 3, where=f"f:{number}") for number in range(9)]
    evaluation = evaluate_set(model, examples, tokenizer, section(rows=4), pad_id=0, stops=STOPS)
    chosen = choose_rows(examples, 4)
    assert evaluation.examples == chosen
    losses = measure_losses(model, chosen, tokenizer, 0)
    np.testing.assert_array_equal(evaluation.rows.losses, losses.losses)
    prompts = [example.tokens[: example.prompt_tokens].tolist() for example in chosen]
    assert evaluation.answers == answer_all(model, prompts, tokenizer, stops=STOPS, room=3 + 16)
    assert evaluation.summary["rows"] == 4


def test_text_is_judged_by_its_loss_alone(model: Any, tokenizer: Any) -> None:
    evaluation = evaluate_set(model, [plain()], tokenizer, section(), pad_id=0, stops=STOPS)
    assert evaluation.answers == ()
    assert "exact_match" not in evaluation.summary
