"""Rows become tokens of which the right ones are learnt, and no row is longer than allowed."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.draft import Encoder
from peftkit.data.example import Example
from peftkit.data.formats import (
    COLUMNS,
    PLAIN_INSTRUCTION,
    READERS,
    ROWS_AT_ONCE,
    build_examples,
    detect_format,
)
from peftkit.data.rows import Intake, Row
from peftkit.errors import InputError

words = some.text("ab é🙂\n", min_size=1, max_size=12).filter(str.strip)
texts = some.builds(lambda text: {"text": text}, words)
completions = some.builds(
    lambda prompt, completion: {"prompt": prompt, "completion": completion},
    some.one_of(some.none(), some.just(""), words),
    words,
)
instructions = some.builds(
    lambda instruction, given, output: (
        {"instruction": instruction, "input": given} | {"output": output}
    ),
    words,
    some.one_of(some.none(), words),
    words,
)
chats = some.builds(
    lambda pairs: {
        "messages": [
            {"role": role, "content": content}
            for pair in pairs
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
    },
    some.lists(some.tuples(words, words), min_size=1, max_size=3),
)
rows = some.one_of(texts, completions, instructions, chats)


def encoder(tokenizer: Any, *, max_length: int = 512, too_long: str = "error") -> Encoder:
    return Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), max_length, too_long)


def build(
    values: dict[str, Any] | list[dict[str, Any]], made: Encoder, given: str = "auto"
) -> tuple[list[Example], Intake]:
    intake = Intake("error")
    listed = values if isinstance(values, list) else [values]
    numbered = [Row(one, f"f.jsonl:{number}") for number, one in enumerate(listed, start=1)]
    return list(build_examples(numbered, given, "f.jsonl", made, intake)), intake


def one(values: dict[str, Any], made: Encoder, given: str = "auto") -> Example:
    (example,), intake = build(values, made, given)
    assert not intake.found
    return example


def refused(values: dict[str, Any], made: Encoder, given: str = "auto") -> str:
    examples, intake = build(values, made, given)
    assert not examples
    (bad,) = intake.found
    assert bad.where == "f.jsonl:1"
    return bad.why


def learnt(example: Example, tokenizer: Any) -> str:
    return str(tokenizer.decode(example.tokens[example.trained].tolist()))


@given(
    values=rows,
    max_length=some.integers(3, 60),
    too_long=some.sampled_from(["error", "drop", "truncate"]),
)
def test_every_row_is_taken_or_told_about(
    values: dict[str, Any], max_length: int, too_long: str, tokenizer: Any
) -> None:
    examples, intake = build(values, encoder(tokenizer, max_length=max_length, too_long=too_long))
    assert bool(examples) + len(intake.found) + len(intake.dropped) == 1
    for example in examples:
        assert len(example.trained) == example.length <= max_length
        assert not example.trained[0]
        assert example.trained_tokens >= 1
        assert example.prompt_tokens < example.length
        assert not example.trained[: example.prompt_tokens].any() or example.format == "chat"
        assert (example.answer is None) == (example.prompt_tokens == 0)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"messages": [], "text": ""}, "chat"),
        ({"instruction": "", "output": "", "text": ""}, "instruction"),
        ({"prompt": "", "completion": ""}, "completion"),
        ({"text": "", "label": 1}, "text"),
        ({"prompt": ""}, None),
        ({}, None),
    ],
)
def test_the_format_is_read_off_the_columns(values: dict[str, Any], kind: str | None) -> None:
    assert detect_format(Row(values, "f:1")) == kind


def test_each_source_may_mix_formats(tokenizer: Any) -> None:
    mixed = [{"text": "a b"}, {"prompt": "a", "completion": "b"}]
    examples, intake = build(mixed, encoder(tokenizer))
    assert not intake.found
    assert [example.format for example in examples] == ["text", "completion"]
    assert [example.where for example in examples] == ["f.jsonl:1", "f.jsonl:2"]
    assert {example.source for example in examples} == {"f.jsonl"}


def test_columns_that_fit_no_format_stop_at_the_first_row(tokenizer: Any) -> None:
    with pytest.raises(InputError) as refusal:
        build([{"question": "a", "answer": "b"}], encoder(tokenizer))
    assert refusal.value.exit_code == 65
    assert refusal.value.message == ("f.jsonl:1: no format fits; the row has `question`, `answer`")
    assert all(kind in refusal.value.problems[0] for kind in READERS["causal-lm"])
    assert "columns: {prompt: question}" in str(refusal.value.hint)


def test_later_on_they_make_a_bad_row(tokenizer: Any) -> None:
    examples, intake = build([{"text": "a b"}, {"txt": "c"}, {}], encoder(tokenizer))
    assert len(examples) == 1
    assert [(bad.where, bad.why) for bad in intake.found] == [
        ("f.jsonl:2", "no format fits; the row has `txt`"),
        ("f.jsonl:3", "no format fits; the row has no columns"),
    ]


@given(values=texts)
def test_text_is_learnt_whole_and_ends_with_the_stop(
    values: dict[str, str], tokenizer: Any
) -> None:
    example = one(values, encoder(tokenizer))
    expected = tokenizer(values["text"])["input_ids"]
    assert example.tokens.tolist() == [*expected, tokenizer.eos_token_id]
    assert example.trained.tolist() == [False] + [True] * len(expected)
    assert (example.prompt_tokens, example.answer, example.text) == (0, None, values["text"])


def test_a_tokenizer_that_closes_texts_itself_is_not_helped(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    closing = copy.deepcopy(tokenizer)
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    made = encoder(closing)
    assert closing.decode(one({"text": "ab"}, made).tokens.tolist()) == "ab<|end|>"
    completion = one({"prompt": "ab", "completion": "c"}, made)
    assert closing.decode(completion.tokens.tolist()) == "abc<|end|>"
    assert learnt(completion, closing) == "c<|end|>"


@given(values=completions)
def test_a_completion_is_learnt_after_a_prompt_that_is_not(
    values: dict[str, Any], tokenizer: Any
) -> None:
    example = one(values, encoder(tokenizer))
    prompt = tokenizer(values["prompt"] or "")["input_ids"]
    assert example.tokens[: example.prompt_tokens].tolist() == prompt
    assert learnt(example, tokenizer) == f"{values['completion']}<|end|>"
    assert example.answer == values["completion"].strip()
    assert example.prompt == (values["prompt"] or "")


@given(values=instructions)
def test_an_instruction_is_a_chat_of_one_turn(values: dict[str, Any], tokenizer: Any) -> None:
    example = one(values, encoder(tokenizer))
    given = (values["input"] or "").strip()
    asked = f"{values['instruction']}\n\n{given}" if given else values["instruction"]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": values["output"]}]
    chat = one({"messages": turns}, encoder(tokenizer))
    assert example.tokens.tolist() == chat.tokens.tolist()
    assert example.trained.tolist() == chat.trained.tolist()
    assert (example.prompt, example.answer, example.text) == (chat.prompt, chat.answer, chat.text)
    assert example.prompt == asked


def test_an_instruction_to_a_base_without_a_template_is_written_out(tokenizer: Any) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    values = {"instruction": "add", "input": "1 2", "output": "3"}
    example = one(values, encoder(plain))
    asked = PLAIN_INSTRUCTION.format("add\n\n1 2")
    assert plain.decode(example.tokens.tolist()) == f"<|bos|>{asked}3<|end|>"
    assert learnt(example, plain) == "3<|end|>"
    assert (example.prompt, example.answer) == ("add\n\n1 2", "3")


@given(values=chats)
def test_a_chat_remembers_its_last_prompt_and_answer(
    values: dict[str, Any], tokenizer: Any
) -> None:
    example = one(values, encoder(tokenizer))
    turns = values["messages"]
    asked = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=True)
    assert example.tokens[: example.prompt_tokens].tolist() == asked["input_ids"]
    assert example.answer == turns[-1]["content"]
    assert example.text.startswith(f"user: {turns[0]['content']}\nassistant: ")


def test_a_chat_that_ends_with_a_question_has_no_answer(tokenizer: Any) -> None:
    contents = ["a", "b", "c"]
    turns = [
        {"role": r, "content": c}
        for r, c in zip(("user", "assistant", "user"), contents, strict=True)
    ]
    example = one({"messages": turns}, encoder(tokenizer))
    assert learnt(example, tokenizer) == "b<|end|>"
    assert (example.prompt_tokens, example.answer) == (0, None)


@given(text=some.text(min_size=1, max_size=120).filter(str.strip), size=some.integers(3, 40))
def test_long_text_is_cut_into_pieces_that_hold_every_token_once(
    text: str, size: int, tokenizer: Any
) -> None:
    made = encoder(tokenizer, max_length=size)
    pieces, intake = build({"text": text}, made)
    assert not intake.found
    assert not intake.dropped
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert [token for piece in pieces for token in piece.tokens.tolist()] == whole
    assert all(2 <= piece.length <= size for piece in pieces)
    assert len(pieces) == -(-len(whole) // size)
    for piece in pieces:
        assert piece.trained.tolist() == [False] + [True] * (piece.length - 1)
        assert piece.cut == 0
    starts = [sum(piece.length for piece in pieces[:number]) for number in range(len(pieces))]
    if len(pieces) > 1:
        assert [piece.where for piece in pieces] == [f"f.jsonl:1+{start}" for start in starts]


@pytest.mark.parametrize("size", [1, 2])
def test_pieces_in_which_nothing_is_predicted_are_refused(size: int, tokenizer: Any) -> None:
    made = encoder(tokenizer, max_length=size)
    assert f"`data.max_length: {size}`" in refused({"text": "abcdef"}, made)


def test_a_very_long_text_is_cut_too(tokenizer: Any) -> None:
    pieces, _ = build({"text": "ab " * 20_000}, encoder(tokenizer, max_length=1000))
    assert sum(piece.length for piece in pieces) == 60_002
    assert len(pieces) == 61


LONG = {"prompt": "question", "completion": "a long answer"}
LENGTH = len("question") + len("a long answer") + 2


def test_too_long_an_answer_is_an_error_unless_the_recipe_says_otherwise(tokenizer: Any) -> None:
    assert one(LONG, encoder(tokenizer, max_length=LENGTH)).length == LENGTH
    why = refused(LONG, encoder(tokenizer, max_length=LENGTH - 1))
    assert why.startswith(f"{LENGTH} tokens, longer than `data.max_length: {LENGTH - 1}`")
    assert "drop" in why
    assert "truncate" in why


def test_too_long_an_answer_is_dropped_and_counted(tokenizer: Any) -> None:
    examples, intake = build(LONG, encoder(tokenizer, max_length=LENGTH - 1, too_long="drop"))
    assert not examples
    assert not intake.found
    (dropped,) = intake.dropped
    assert dropped.where == "f.jsonl:1"
    assert dropped.why.startswith(f"{LENGTH} tokens")


def test_too_long_an_answer_is_truncated_and_counted(tokenizer: Any) -> None:
    example = one(LONG, encoder(tokenizer, max_length=LENGTH - 4, too_long="truncate"))
    assert (example.length, example.cut) == (LENGTH - 4, 4)
    assert learnt(example, tokenizer) == "a long ans"
    assert example.answer == "a long answer"


def test_a_cut_that_leaves_nothing_to_learn_is_refused(tokenizer: Any) -> None:
    for size in (3, 1 + len("question")):
        made = encoder(tokenizer, max_length=size, too_long="truncate")
        assert refused(LONG, made) == "no token carries loss after cutting"


def test_a_cut_before_the_last_answer_leaves_no_answer_to_compare(tokenizer: Any) -> None:
    roles, contents = ("user", "assistant") * 2, ("a", "bb", "c" * 30, "d")
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    example = one({"messages": turns}, encoder(tokenizer, max_length=20, too_long="truncate"))
    assert learnt(example, tokenizer) == "bb<|end|>"
    assert (example.prompt_tokens, example.answer) == (0, None)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"text": ""}, "column `text` is empty"),
        ({"text": " \n\t"}, "column `text` is empty"),
        ({"text": None}, "column `text`: expected text, got `None`"),
        ({"text": 7}, "column `text`: expected text, got `7`"),
        ({"text": ["a"]}, "column `text`: expected text"),
        ({"text": "a\ud800"}, "column `text` holds half a character (U+D800)"),
        ({"prompt": "a", "completion": ""}, "column `completion` is empty"),
        ({"prompt": "a", "completion": None}, "column `completion`: expected text"),
        ({"prompt": {"a": 1}, "completion": "b"}, "column `prompt`: expected text"),
        ({"prompt": "\udfff", "completion": "b"}, "column `prompt` holds half a character"),
        ({"instruction": "", "output": "b"}, "column `instruction` is empty"),
        ({"instruction": "a", "output": " "}, "column `output` is empty"),
        ({"instruction": "a", "input": 3, "output": "b"}, "column `input`: expected text"),
        ({"messages": []}, "column `messages`: expected a list of turns"),
        ({"messages": None}, "column `messages`: expected a list of turns"),
        ({"messages": "user: hi"}, "column `messages`: expected a list of turns"),
        ({"messages": {"role": "user", "content": "a"}}, "expected a list of turns"),
        ({"messages": [{"role": "user", "content": "a"}, None]}, "turn 2: expected `role`"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no token carries loss"),
    ],
)
def test_a_row_without_content_is_told(values: dict[str, Any], reason: str, tokenizer: Any) -> None:
    assert reason in refused(values, encoder(tokenizer))


@pytest.mark.parametrize("kind", READERS["causal-lm"])
def test_a_missing_column_is_told(kind: str, tokenizer: Any) -> None:
    why = refused({"other": "a"}, encoder(tokenizer), given=kind)
    assert why == f"format `{kind}` needs column `{COLUMNS[kind][0]}`; the row has `other`"


@pytest.mark.parametrize(
    "odd", ["a\0b", "a\ufeffb", "\x1b[31m", "a\u2028b", "\u202eabc", "x" * 999]
)
def test_odd_but_valid_characters_are_kept(odd: str, tokenizer: Any) -> None:
    example = one({"text": odd}, encoder(tokenizer, max_length=2000))
    assert tokenizer.decode(example.tokens.tolist()) == f"<|bos|>{odd}<|end|>"


def test_bad_rows_are_told_in_the_order_of_the_file(tokenizer: Any) -> None:
    """Some are found while rows are read, some hundred at a time, and others after that."""
    intake = Intake("error")

    def read() -> Iterator[Row]:
        yield Row({"text": "good"}, "f:1")
        yield Row({"text": ""}, "f:2")
        intake.refuse("f:3", "not JSON")
        yield Row({"text": "a\ud800"}, "f:4")
        yield Row({"messages": []}, "f:5")
        intake.refuse("f:6", "not JSON")

    assert len(list(build_examples(read(), "auto", "f", encoder(tokenizer), intake))) == 1
    assert [bad.where for bad in intake.found] == ["f:2", "f:3", "f:4", "f:5", "f:6"]


def test_only_some_rows_are_held_at_once(tokenizer: Any) -> None:
    read = []

    def count() -> Iterator[Row]:
        for number in range(3 * ROWS_AT_ONCE):
            read.append(number)
            yield Row({"text": f"row {number}"}, f"f:{number}")

    examples = build_examples(count(), "text", "f", encoder(tokenizer), Intake("error"))
    places = []
    for example in examples:
        places.append(example.where)
        assert len(read) <= (len(places) // ROWS_AT_ONCE + 1) * ROWS_AT_ONCE
    assert places == [f"f:{number}" for number in range(3 * ROWS_AT_ONCE)]
