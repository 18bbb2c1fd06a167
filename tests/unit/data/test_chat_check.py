"""The gate of every run sees when chats are not tokenized as the tokenizer does it."""

import copy
from typing import Any

import pytest

from peftkit.data.chat_check import ChatGate
from peftkit.data.draft import Draft, Encoder
from peftkit.data.formats import build_examples
from peftkit.data.rows import Intake, Row
from peftkit.errors import InputError


def chat(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    return {
        "messages": [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=False)
        ]
    }


def build(rows: list[dict[str, Any]], tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), 512, "error")
    numbered = [Row(values, f"f.jsonl:{number}") for number, values in enumerate(rows, start=1)]
    list(build_examples(numbered, "auto", "f.jsonl", encoder, Intake("error")))


def otherwise(tokenizer: Any, when: str, token: int) -> Any:
    """A tokenizer that puts a token behind chats with a certain word, but not into their text."""

    class Otherwise(type(tokenizer)):  # type: ignore[misc]
        def apply_chat_template(self, conversation: Any, *args: Any, **options: Any) -> Any:
            found = super().apply_chat_template(conversation, *args, **options)
            if options.get("tokenize", True) and when in str(conversation):
                found["input_ids"] = [*found["input_ids"], token]
            return found

    changed = copy.deepcopy(tokenizer)
    changed.__class__ = Otherwise
    return changed


def test_the_first_chat_of_a_run_is_compared(tokenizer: Any) -> None:
    build([chat("a", "b")], tokenizer)
    with pytest.raises(InputError) as refusal:
        build([chat("a", "b")], otherwise(tokenizer, "a", 9))
    assert refusal.value.message.startswith("f.jsonl:1: tokens would differ from the tokenizer's")
    assert "`format: tokenized`" in str(refusal.value.hint)


def test_so_is_the_first_of_each_shape(tokenizer: Any) -> None:
    rows = [*[chat("a", "b")] * 5, chat("odd", "b", "c", "d")]
    build(rows, tokenizer)
    with pytest.raises(InputError, match=r"f.jsonl:6: "):
        build(rows, otherwise(tokenizer, "odd", 9))


def test_so_is_an_instruction(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"f.jsonl:1: "):
        build([{"instruction": "odd", "output": "b"}], otherwise(tokenizer, "odd", 9))


def test_which_chats_are_looked_at_follows_from_their_order(tokenizer: Any) -> None:
    gate = ChatGate(Encoder(tokenizer, frozenset(), 512, "error"))
    plain, tools = (Draft([], [], "", roles=roles) for roles in (("user",), ("user", "tool")))
    looked = [gate.wants(plain) for _ in range(70)]
    assert [at for at, wanted in enumerate(looked) if wanted] == [0, 1, 2, 4, 8, 16, 32, 64]
    assert gate.wants(tools)
    assert not gate.wants(tools)
    assert gate.wants(Draft([], [], "", roles=("user",), unsure=True))
    assert not gate.wants(Draft([], [], "", roles=("user",), unsure=True, typed=1))


def test_another_mask_is_seen_as_well(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), 512, "error")
    turns = chat("a", "b")["messages"]
    ids = tokenizer.apply_chat_template(turns)["input_ids"]
    wrong = Draft(ids, [False] * len(ids), "", roles=("user", "assistant"))
    with pytest.raises(InputError, match="f:1: what is learned would differ"):
        ChatGate(encoder).check(wrong, turns, None, "f:1")
