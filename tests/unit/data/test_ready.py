"""Rows that are tokenized already are taken as they are, if the base can read them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.draft import Encoder
from peftkit.data.example import Example
from peftkit.data.formats import build_examples
from peftkit.data.rows import Intake, Row

ids = some.lists(some.integers(0, 200), min_size=2, max_size=20)


def build(
    values: dict[str, Any], tokenizer: Any, max_length: int = 512, too_long: str = "error"
) -> tuple[list[Example], Intake]:
    intake = Intake("error")
    stops = frozenset({tokenizer.eos_token_id})
    encoder = Encoder(tokenizer, stops, max_length, too_long)
    return list(build_examples([Row(values, "f:1")], "auto", "f", encoder, intake)), intake


@given(tokens=ids)
def test_without_labels_everything_is_learned_but_the_first(
    tokens: list[int], tokenizer: Any
) -> None:
    ((example,), _) = build({"input_ids": tokens, "text": "of another format"}, tokenizer)
    assert example.format == "tokenized"
    assert example.tokens.tolist() == tokens
    assert example.trained.tolist() == [False] + [True] * (len(tokens) - 1)
    assert (example.prompt_tokens, example.answer, example.stops) == (0, None, 0)


@given(
    pairs=some.lists(some.tuples(some.integers(0, 200), some.booleans()), min_size=2),
    column=some.sampled_from(["mask", "labels"]),
)
def test_labels_or_a_mask_say_what_is_learned(
    pairs: list[tuple[int, bool]], column: str, tokenizer: Any
) -> None:
    tokens, learned = [token for token, _ in pairs], [wanted for _, wanted in pairs]
    given = [token if wanted else -100 for token, wanted in pairs]
    examples, intake = build(
        {"input_ids": tokens, column: learned_as_numbers(learned) if column == "mask" else given},
        tokenizer,
    )
    expected = [False, *learned[1:]]
    assert [example.trained.tolist() for example in examples] == [expected] * any(expected)
    assert len(intake.found) == (not any(expected))


def learned_as_numbers(learned: list[bool]) -> list[int]:
    return [int(each) for each in learned]


def test_a_prompt_and_an_answer_are_found(tokenizer: Any) -> None:
    prompt, answer = (
        tokenizer("ask").input_ids,
        tokenizer("yes", add_special_tokens=False).input_ids,
    )
    end = tokenizer.eos_token_id
    tokens = [*prompt, *answer, end]
    labels = [-100] * len(prompt) + [*answer, end]
    ((example,), _) = build({"input_ids": tokens, "labels": labels}, tokenizer)
    assert (example.prompt, example.answer, example.prompt_tokens) == ("ask", "yes", len(prompt))
    assert (example.stops, example.cut_answers) == (1, 0)
    ((cut,), _) = build(
        {"input_ids": tokens, "labels": labels}, tokenizer, len(tokens) - 1, "truncate"
    )
    assert (cut.stops, cut.cut_answers, cut.cut) == (0, 1, 1)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"input_ids": []}, "column `input_ids`: expected a list of ids, got `[]`"),
        ({"input_ids": None}, "column `input_ids`: expected a list of ids, got `None`"),
        ({"input_ids": "1 2"}, "column `input_ids`: expected a list of ids"),
        ({"input_ids": [1, 2.0]}, "column `input_ids`: expected a list of ids"),
        ({"input_ids": [1, True]}, "column `input_ids`: expected a list of ids"),
        ({"input_ids": [1, 2**40]}, "column `input_ids`: expected a list of ids"),
        ({"input_ids": [1, -1]}, "column `input_ids`: id -1 at place 1; the vocabulary"),
        ({"input_ids": [1, 262]}, "column `input_ids`: id 262 at place 1; the vocabulary"),
        ({"input_ids": [1, 2], "labels": [1]}, "2 in `input_ids`, but 1 in `labels`"),
        ({"input_ids": [1, 2], "mask": [1, 1, 1]}, "2 in `input_ids`, but 3 in `mask`"),
        ({"input_ids": [1, 2], "mask": [0, 7]}, "column `mask`: expected 0 or 1"),
        ({"input_ids": [1, 2, 3], "labels": [-100, 3, 3]}, "column `labels`: 3 at place 1"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, "no token carries loss"),
        ({"input_ids": [1]}, "no token carries loss"),
    ],
)
def test_what_cannot_be_learned_from_is_told(
    values: dict[str, Any], reason: str, tokenizer: Any
) -> None:
    examples, intake = build(values, tokenizer)
    assert not examples
    assert intake.found[0].why.startswith(reason)
