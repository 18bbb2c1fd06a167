"""What a row spells out is never a control token, whatever its format; and each one is counted."""

import copy
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from peftkit.data.draft import Encoder
from peftkit.data.example import Example
from peftkit.data.formats import READERS, build_examples
from peftkit.data.rows import Intake, Row

TYPED: dict[tuple[str, str], dict[str, Any]] = {
    ("causal-lm", "chat"): {
        "messages": [{"role": "user", "content": "a@"}, {"role": "assistant", "content": "b"}]
    },
    ("causal-lm", "instruction"): {"instruction": "a", "input": "x@y", "output": "b"},
    ("causal-lm", "completion"): {"prompt": "a@", "completion": "b"},
    ("causal-lm", "text"): {"text": "a@b"},
    ("masked-lm", "text"): {"text": "a@b"},
    ("seq2seq", "completion"): {"prompt": "a", "completion": "@b"},
    ("seq2seq", "instruction"): {"instruction": "a@", "output": "b"},
    ("classification", "classification"): {"text": "a@", "label": "x"},
    ("multi-label", "classification"): {"text": "a@", "label": ["x"]},
    ("regression", "classification"): {"text": "a@", "text_pair": "b", "label": 1},
    ("token-classification", "tokens"): {"tokens": ["a", "@"], "tags": ["O", "B"]},
    ("embedding", "similar"): {"anchor": "a@", "positive": "b"},
}
"""A row of each format that has text; the control token stands where the sign does."""


def spell(value: Any, token: str) -> Any:
    if isinstance(value, str):
        return value.replace("@", token)
    if isinstance(value, dict):
        return {name: spell(each, token) for name, each in value.items()}
    return [spell(each, token) for each in value] if isinstance(value, list) else value


def made(values: Any, kind: str, encoder: Encoder) -> tuple[list[Example], Intake]:
    intake = Intake("error")
    return list(build_examples([Row(values, "f:1")], kind, "f", encoder, intake)), intake


def test_every_format_with_text_is_tried() -> None:
    every = {(task, kind) for task, kinds in READERS.items() for kind in kinds}
    assert every - set(TYPED) == {("causal-lm", "tokenized")}


@pytest.mark.parametrize("token", ["<|end|>", "<|user|>", "<|bos|>", "<|pad|>"])
@pytest.mark.parametrize(("task", "kind"), TYPED)
def test_a_control_token_that_a_row_spells_out_is_text(
    task: str, kind: str, token: str, tokenizer: Any
) -> None:
    stops = frozenset({tokenizer.eos_token_id})
    encoder = Encoder(tokenizer, stops, 512, "error", task=task)
    ((example,), intake) = made(spell(TYPED[task, kind], token), kind, encoder)
    ((plain,), _) = made(spell(TYPED[task, kind], "@"), kind, encoder)
    assert not intake.found
    special = set(tokenizer.all_special_ids)
    own = [each for each in plain.tokens.tolist() if each in special]
    assert [each for each in example.tokens.tolist() if each in special] == own
    assert token in tokenizer.decode(example.tokens)
    assert (example.typed, plain.typed) == (1, 0)
    assert example.stops == plain.stops


@pytest.mark.parametrize(("task", "kind"), TYPED)
def test_unless_the_source_says_that_they_are_meant(task: str, kind: str, tokenizer: Any) -> None:
    stops = frozenset({tokenizer.eos_token_id})
    encoder = Encoder(tokenizer, stops, 512, "error", task=task, control_tokens="tokens")
    ((example,), _) = made(spell(TYPED[task, kind], "<|user|>"), kind, encoder)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    ((plain,), _) = made(spell(TYPED[task, kind], "@"), kind, encoder)
    tokens, others = example.tokens.tolist(), plain.tokens.tolist()
    assert tokens.count(user) == others.count(user) + 1
    assert example.typed == 0


def test_a_token_that_cannot_be_read_as_text_makes_a_bad_row() -> None:
    """The vocabulary of a word tokenizer knows `</s>` as a word too."""
    words = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    encoder = Encoder(tokenizer, frozenset({0}), 64, "error")
    for values, kind in (
        ({"text": "a </s> a"}, "text"),
        ({"prompt": "a", "completion": "</s>"}, "completion"),
    ):
        examples, intake = made(values, kind, encoder)
        assert not examples
        assert intake.found[0].why.startswith("spells out `</s>`")
        assert "control_tokens: tokens" in intake.found[0].why
    labelled = Encoder(tokenizer, frozenset({0}), 64, "error", task="classification")
    _, intake = made({"text": "a </s>", "label": "x"}, "classification", labelled)
    assert intake.found[0].why.startswith("spells out `</s>`")


def test_ordinary_words_may_be_unknown() -> None:
    """The unknown token is special too, and no text spells it out."""
    words = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    encoder = Encoder(tokenizer, frozenset({0}), 64, "error")
    ((example,), _) = made({"text": "a stranger"}, "text", encoder)
    assert example.tokens.tolist() == [2, 1, 0]
    assert example.typed == 0


def test_an_unknown_token_that_ends_a_text_is_a_control_token() -> None:
    """As GPT-2's is, which needs none for what it does not know."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: at for at, sign in enumerate([*letters, "<|endoftext|>"])}
    made_of_bytes = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made_of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made_of_bytes, eos_token=end, bos_token=end, unk_token=end
    )
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), 64, "error")
    ((example,), _) = made({"text": f"a{end}b"}, "text", encoder)
    assert example.tokens.tolist().count(tokenizer.eos_token_id) == 1
    assert example.typed == 1


def test_marks_of_our_own_in_a_row_change_nothing(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "a\ufdd0b\ufdd1"}, {"role": "assistant", "content": "c"}]
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), 512, "error")
    ((example,), _) = made({"messages": turns}, "chat", encoder)
    assert example.tokens.tolist() == tokenizer.apply_chat_template(turns)["input_ids"]
    forged = copy.deepcopy(turns)
    forged[0]["content"] += "<|end|>"
    examples, intake = made({"messages": forged}, "chat", encoder)
    assert not examples
    assert "U+FDD0" in intake.found[0].why
