"""Rows with labels, tags, pairs and sources: what becomes of them, and what is refused."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from peftkit.data.batch import collate_task
from peftkit.data.draft import Encoder
from peftkit.data.example import IGNORED, Example
from peftkit.data.formats import build_examples
from peftkit.data.rows import Intake, Row
from peftkit.data.task import Task
from peftkit.errors import InputError

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.fixture(scope="module")
def framing() -> Any:
    """A tokenizer like BERT's: a token a word, `[CLS]` before and `[SEP]` after each text."""
    vocabulary = {
        w: n for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def build(
    values: list[dict[str, Any]], tokenizer: Any, task: str, **policy: Any
) -> tuple[list[Example], Intake]:
    settings = {"max_length": 16, "too_long": "error", "labels": ()} | policy
    encoder = Encoder(tokenizer, frozenset({3}), task=task, **settings)
    intake = Intake("skip")
    rows = [Row(value, f"f.jsonl:{number}") for number, value in enumerate(values, start=1)]
    return list(build_examples(rows, "auto", "f.jsonl", encoder, intake)), intake


def one(values: dict[str, Any], tokenizer: Any, task: str, **policy: Any) -> Example:
    (example,), intake = build([values], tokenizer, task, **policy)
    assert intake.found == []
    return example


def why(values: dict[str, Any], tokenizer: Any, task: str, **policy: Any) -> str:
    examples, intake = build([values], tokenizer, task, **policy)
    assert examples == []
    return (intake.found or intake.dropped)[0].why


def test_a_text_and_its_label(framing: Any) -> None:
    example = one({"text": "a b", "label": "hot"}, framing, "classification")
    assert example.tokens.tolist() == [2, 5, 6, 3]
    assert example.trained_tokens == 1
    assert (example.labels, example.answer, example.prompt) == (("hot",), "hot", "a b")


def test_two_texts_are_told_apart(framing: Any) -> None:
    values = {"text": "a b", "text_pair": "c", "label": 1}
    example = one(values, framing, "classification")
    assert (example.tokens.tolist(), example.parts) == ([2, 5, 6, 3, 7, 3], (4, 2))
    batch = collate_task([example], Task("classification", ("0", "1"), typed=True), 0)
    assert batch.types is not None
    assert batch.types.tolist() == [[0, 0, 0, 0, 1, 1]]
    assert batch.targets.tolist() == [[1]]


def test_a_cut_leaves_the_tokens_that_frame_a_text(framing: Any) -> None:
    values = {"text": "a b c d e f", "label": "x"}
    example = one(values, framing, "classification", max_length=5, too_long="truncate")
    assert example.tokens.tolist() == [2, 5, 6, 7, 3]
    assert example.cut == 3
    assert "8 tokens, longer" in why(values, framing, "classification", max_length=5)
    assert "8 tokens" in why(values, framing, "classification", max_length=5, too_long="drop")


def test_labels_of_several_kinds(framing: Any) -> None:
    found = one({"text": "a", "label": ["x", "y", "x"]}, framing, "multi-label")
    assert found.labels == ("x", "y")
    assert one({"text": "a", "label": []}, framing, "multi-label").labels == ()
    assert one({"text": "a", "label": "2.5"}, framing, "regression").labels == ("2.5",)
    assert one({"text": "a", "label": True}, framing, "classification").labels == ("true",)


@pytest.mark.parametrize(
    ("task", "label", "reason"),
    [
        ("classification", None, "expected a name, got `None`"),
        ("classification", "", "expected a name"),
        ("classification", 1.5, "expected a name, got `1.5`"),
        ("multi-label", "x", "expected a list, got `x`"),
        ("regression", "much", "expected a number, got `much`"),
        ("regression", "nan", "expected a finite number"),
        ("regression", True, "expected a number, got `True`"),
    ],
)
def test_a_label_that_is_none_is_told(framing: Any, task: str, label: Any, reason: str) -> None:
    assert reason in why({"text": "a", "label": label}, framing, task)


def test_a_label_beside_the_list_makes_a_bad_row(framing: Any) -> None:
    told = why({"text": "a", "label": "z"}, framing, "classification", labels=("x", "y"))
    assert told == "column `label`: `z` is none of `base.labels`: x, y"


def test_the_first_token_of_a_word_carries_its_tag(tokenizer: Any) -> None:
    example = one({"tokens": ["ab", "c"], "tags": ["B-x", "O"]}, tokenizer, "token-classification")
    first = [tokenizer.decode([token]) for token in example.tokens[example.trained]]
    assert (first, example.labels) == (["a", "c"], ("B-x", "O"))
    batch = collate_task([example], Task("token-classification", ("B-x", "O")), 0)
    assert [n for n in batch.targets[0].tolist() if n != IGNORED] == [0, 1]


def test_words_are_read_as_in_running_text(tokenizer: Any) -> None:
    values = {"tokens": ["on", "was"], "tags": ["O", "B-x"]}
    example = one(values, tokenizer, "token-classification")
    assert example.tokens.tolist() == tokenizer("on was")["input_ids"]
    assert example.labels == ("O", "B-x")


def test_half_a_character_in_a_label_makes_a_bad_row(framing: Any) -> None:
    told = why({"text": "a", "label": "x\ud800"}, framing, "classification")
    assert told == "column `label` holds half a character"
    told = why({"tokens": ["\udc00"], "tags": ["O"]}, framing, "token-classification")
    assert told == "column `tokens` holds half a character"


def test_a_word_without_a_token_makes_a_bad_row(framing: Any) -> None:
    told = why({"tokens": ["a", ""], "tags": ["O", "O"]}, framing, "token-classification")
    assert told == "word 2 in `tokens`, ``, has no token"


def test_tags_that_do_not_fit_are_told(framing: Any) -> None:
    task = "token-classification"
    assert "1 words in `tokens`, but 2" in why({"tokens": ["a"], "tags": ["O", "O"]}, framing, task)
    assert "expected a list of words" in why({"tokens": "a b", "tags": ["O"]}, framing, task)


def test_anchors_are_batched_before_positives(framing: Any) -> None:
    rows = [{"anchor": "a", "positive": "b c"}, {"anchor": "d", "positive": "e", "negative": "f"}]
    examples, _ = build(rows, framing, "embedding")
    assert [example.parts for example in examples] == [(3, 4), (3, 3, 3)]
    batch = collate_task(examples, Task("embedding"), 0)
    assert batch.inputs[:, 1].tolist() == [5, 8, 6, 9, 10]
    assert batch.targets.tolist() == [[1, 0, 0], [0, 1, 0]]
    (negated,), _ = build(rows[1:], framing, "embedding")
    assert collate_task([negated], Task("embedding"), 0).inputs[:, 1].tolist() == [8, 9, 10]


def test_texts_that_are_alike_elsewhere_are_not_told_apart(framing: Any) -> None:
    rows = [
        {"anchor": "a", "positive": "b", "negative": "e"},
        {"anchor": "a", "positive": "c", "negative": "d"},  # the same anchor
        {"anchor": "d", "positive": "b", "negative": "b"},  # the first one's positive
        {"anchor": "b", "positive": "e", "negative": "a"},  # an anchor that is a positive
    ]
    examples, _ = build(rows, framing, "embedding")
    targets = collate_task(examples, Task("embedding"), 0).targets
    assert targets.tolist() == [
        [1, IGNORED, IGNORED, 0, 0, 0, IGNORED, IGNORED],
        [IGNORED, 1, 0, 0, 0, 0, 0, IGNORED],
        [IGNORED, 0, 1, 0, 0, IGNORED, IGNORED, 0],
        [IGNORED, 0, IGNORED, 1, IGNORED, 0, IGNORED, 0],
    ]


def test_a_source_is_read_and_a_target_written(tokenizer: Any) -> None:
    example = one({"prompt": "ab", "completion": "c"}, tokenizer, "seq2seq")
    batch = collate_task([example], Task("seq2seq"), 0)
    ids = tokenizer("ab")["input_ids"]
    assert batch.inputs.tolist() == [ids]
    wanted = [*tokenizer("c", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert batch.targets.tolist() == [wanted]
    cut = one(
        {"instruction": "ab", "input": "x", "output": "c" * 40},
        tokenizer,
        "seq2seq",
        too_long="truncate",
    )
    assert cut.cut == 41 - 16
    assert tokenizer.eos_token_id not in cut.tokens[cut.prompt_tokens :]


def test_a_long_passage_is_framed_piece_by_piece(framing: Any) -> None:
    examples, _ = build([{"text": " ".join(WORDS)}], framing, "masked-lm", max_length=5)
    assert [example.tokens.tolist() for example in examples] == [
        [2, 5, 6, 7, 3],
        [2, 8, 9, 10, 3],
        [2, 11, 12, 3],
    ]
    assert all(not e.trained[0] and not e.trained[-1] for e in examples)
    assert sum(example.trained_tokens for example in examples) == len(WORDS)


def test_a_format_of_another_task_is_refused(framing: Any) -> None:
    encoder = Encoder(framing, frozenset(), 16, "error", "classification")
    rows = [Row({"messages": []}, "f:1")]
    with pytest.raises(InputError, match=r"`chat` is not for `base.task: classification`") as told:
        list(build_examples(rows, "chat", "f", encoder, Intake("error")))
    assert told.value.hint == "formats that are: classification"
