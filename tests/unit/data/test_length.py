"""Whatever is cut off is counted, and what is left teaches nothing that is not so."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.batch import Layout, make_update
from peftkit.data.draft import Encoder
from peftkit.data.example import Example
from peftkit.data.formats import build_examples
from peftkit.data.rows import Intake, Row
from peftkit.data.totals import count_tokens

answers = some.lists(some.text("ab", min_size=1, max_size=12), min_size=1, max_size=4)


def chat(said: list[str]) -> dict[str, Any]:
    return {
        "messages": [
            {"role": role, "content": content}
            for answer in said
            for role, content in (("user", "ask"), ("assistant", answer))
        ]
    }


def build(
    rows: list[dict[str, Any]], tokenizer: Any, max_length: int = 999
) -> tuple[list[Example], Intake]:
    intake = Intake("error")
    stops = frozenset({tokenizer.eos_token_id})
    encoder = Encoder(tokenizer, stops, max_length, "truncate")
    numbered = [Row(values, f"f:{number}") for number, values in enumerate(rows, start=1)]
    return list(build_examples(numbered, "auto", "f", encoder, intake)), intake


@given(said=answers, max_length=some.integers(4, 60))
def test_every_answer_is_whole_with_its_stop_or_counted_as_cut(
    said: list[str], max_length: int, tokenizer: Any
) -> None:
    ((whole,), _) = build([chat(said)], tokenizer)
    examples, intake = build([chat(said)], tokenizer, max_length)
    assert len(examples) + len(intake.found) == 1
    for example in examples:
        stop = tokenizer.eos_token_id
        learned = example.tokens[example.trained].tolist()
        assert example.tokens.tolist() == whole.tokens[:max_length].tolist()
        assert example.trained.tolist() == whole.trained[:max_length].tolist()
        assert learned.count(stop) == example.stops
        assert example.stops + example.cut_answers == len(said)
        assert example.cut == whole.length - example.length
        assert (example.cut > 0) >= (example.cut_answers > 0)
        assert not example.cut_answers or example.length == max_length
        assert sum(tokens for _, tokens in example.sections) == example.length
    for bad in intake.found:
        assert bad.why == "no token carries loss after cutting"


@given(said=some.text("ab", min_size=1, max_size=12), size=some.integers(3, 20))
def test_a_completion_that_was_cut_ends_in_no_stop(said: str, size: int, tokenizer: Any) -> None:
    examples, intake = build([{"prompt": "q", "completion": said}], tokenizer, size)
    assert not intake.found
    cut = len(said) + 3 > size
    (example,) = examples
    assert (example.tokens[-1] == tokenizer.eos_token_id) == (not cut)
    assert (example.stops, example.cut_answers) == ((0, 1) if cut else (1, 0))


def test_what_was_cut_is_added_up(tokenizer: Any) -> None:
    rows = [chat(["a", "b" * 20]), chat(["a"]), {"prompt": "q", "completion": "c" * 30}]
    examples, intake = build([*rows, {"text": "d" * 40}], tokenizer, 20)
    assert not intake.found
    totals = count_tokens(examples)
    assert totals["cut_tokens"] == sum(example.cut for example in examples)
    assert (totals["cut_answers"], totals["stops_trained"], totals["control_as_text"]) == (2, 2, 0)
    learned = sum(example.trained_tokens for example in examples)
    assert sum(totals["trained_by_role"].values()) == learned
    assert set(totals["trained_by_role"]) == {"assistant", "answer", "text"}


@pytest.mark.parametrize("packing", [True, False])
def test_a_row_that_teaches_nothing_after_the_cut_is_told_however_rows_are_laid_out(
    *, packing: bool, tokenizer: Any
) -> None:
    """It never reaches a packed row, where its neighbors would hide it."""
    rows = [{"prompt": "q" * 30, "completion": "a"}, {"prompt": "q", "completion": "a"}]
    examples, intake = build(rows, tokenizer, 20)
    assert [bad.where for bad in intake.found] == ["f:1"]
    update = make_update(examples * 4, Layout(packing, 2, 0))
    assert update.trained_tokens == 4 * 2
    assert sum(int((batch.targets >= 0).sum()) for batch in update.micro_batches) == 4 * 2
