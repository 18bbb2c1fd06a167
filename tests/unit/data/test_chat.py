"""A chat is what the tokenizer's template makes of it; answers are learnt, with their stop."""

import copy
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.chat import read_talk
from peftkit.data.chat_check import find_plainly
from peftkit.data.draft import ANSWERS, Draft, Encoder, Steps
from peftkit.data.rows import Row
from peftkit.data.turns import ChatError, turns_of
from peftkit.errors import InputError
from peftkit.recipe.sections.learn import LearnSection

Turns = list[dict[str, Any]]
ENDS_WITH_A_LINE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
FORGETS_TO_STOP = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DROPS_THOUGHTS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ message['content'] if loop.last else message['content'].split('!')[-1] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
THINKS_AT_THE_END = (  # as Qwen3's: an empty thought before the last answer, none before others
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ '<think></think>' if loop.last and message['role'] == 'assistant' }}"
    "{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WANTS_A_USER_FIRST = (
    "{% if messages and messages[0]['role'] != 'user' %}"
    "{{ raise_exception('the user speaks first') }}{% endif %}" + ENDS_WITH_A_LINE
)
words = some.text("ab é🙂\n", min_size=1, max_size=6).filter(str.strip)


@some.composite
def conversations(draw: some.DrawFn) -> Turns:
    turns: Turns = []
    if draw(some.booleans()):
        turns.append({"role": "system", "content": draw(words)})
    for _ in range(draw(some.integers(1, 3))):
        turns.append({"role": "user", "content": draw(words)})
        turns.append({"role": "assistant", "content": draw(words)})
    if draw(some.booleans()):
        turns.append({"role": "user", "content": draw(words)})
    return turns


def with_template(tokenizer: Any, template: str | None) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def encode(
    turns: Turns,
    tokenizer: Any,
    stops: frozenset[int] | None = None,
    learn: LearnSection = ANSWERS,
    tools: list[Any] | None = None,
) -> Draft:
    """The draft of a chat, which is what the tokenizer itself says where that is clear."""
    found = stops or frozenset({tokenizer.eos_token_id})
    encoder = Encoder(tokenizer, found, 10**6, "error", learn=learn)
    checked = turns_of(Row({"messages": turns}, "f:1"))
    draft = ended(read_talk(checked, tools, encoder), encoder)
    ids, trained = find_plainly(checked, tools, encoder)
    assert draft.typed or list(draft.ids) == ids
    assert draft.typed or trained is None or list(draft.trained) == trained
    return draft


def ended(steps: Steps, encoder: Encoder) -> Draft:
    """What a reader returns, once it has been told all that it asks for."""
    drafts: list[Draft] = []

    def keep() -> Steps:
        drafts.append((yield from steps))
        return drafts[0]

    run = keep()
    with suppress(StopIteration):
        asked = next(run)
        while True:
            asked = run.send(encoder.encode_all(asked))
    return drafts[0]


def rendered(turns: Turns, tokenizer: Any, *, ask: bool = False) -> list[int]:
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=ask, return_dict=True)
    return list(encoded["input_ids"])


def runs(chat: Draft, tokenizer: Any) -> list[str]:
    """Each stretch of tokens that are learnt, as text."""
    found, current = [], []
    for token, learnt in zip([*chat.ids, 0], [*chat.trained, False], strict=True):
        if learnt:
            current.append(token)
        elif current:
            found.append(tokenizer.decode(current))
            current = []
    return found


@pytest.mark.parametrize("template", [None, ENDS_WITH_A_LINE])
@given(turns=conversations())
def test_assistant_turns_are_learnt_with_their_stop_and_nothing_else(
    template: str | None, turns: Turns, tokenizer: Any
) -> None:
    """Not the line that the template adds after the stop: the model never gets to write it."""
    own = with_template(tokenizer, template or tokenizer.chat_template)
    chat = encode(turns, own)
    assert chat.ids == rendered(turns, own)
    assert len(chat.trained) == len(chat.ids)
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    assert runs(chat, own) == [f"{answer}<|end|>" for answer in answers]
    last = max(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
    start, end = chat.answers[-1]
    assert chat.ids[:start] == rendered(turns[:last], own, ask=True)
    assert chat.trained[start - 1 : end + 1].tolist()[:2] == [False, True]
    assert chat.ids[end - 1] == own.eos_token_id
    assert chat.prompt_tokens == (start if turns[-1]["role"] == "assistant" else 0)


@given(turns=conversations())
def test_a_chat_in_which_nobody_answers_teaches_nothing(turns: Turns, tokenizer: Any) -> None:
    asked = [turn for turn in turns if turn["role"] != "assistant"]
    chat = encode(asked, tokenizer)
    assert chat.ids == rendered(asked, tokenizer)
    assert not any(chat.trained)
    assert chat.prompt_tokens == 0


def test_any_stop_token_ends_a_turn(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for stops in ({2}, {2, 99}, {2, 0}):
        assert runs(encode(turns, tokenizer, frozenset(stops)), tokenizer) == ["b<|end|>"]


@pytest.mark.parametrize("asked", ["hi", "hi<|end|>"])
def test_a_template_that_does_not_stop_is_refused(asked: str, tokenizer: Any) -> None:
    endless = with_template(tokenizer, FORGETS_TO_STOP)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "yo"}]
    with pytest.raises(InputError, match="without a stop token") as refusal:
        encode(turns, endless)
    assert refusal.value.exit_code == 65
    assert "eos_token" in str(refusal.value.hint)


def test_a_base_without_a_template_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="no chat template") as refusal:
        encode([{"role": "user", "content": "hi"}], with_template(tokenizer, None))
    assert refusal.value.exit_code == 65


def test_a_template_that_rewrites_earlier_turns_is_told(tokenizer: Any) -> None:
    thinking = with_template(tokenizer, DROPS_THOUGHTS)
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "hm!b"},
        {"role": "user", "content": "c"},
    ]
    assert runs(encode(turns[:2], thinking), thinking) == ["hm!b<|end|>"]
    with pytest.raises(ChatError, match="turn 2: the chat template renders it differently"):
        encode(turns, thinking)


@given(turns=conversations())
def test_a_thought_that_only_the_last_answer_gets_is_no_harm(turns: Turns, tokenizer: Any) -> None:
    thinking = with_template(tokenizer, THINKS_AT_THE_END)
    chat = encode(turns, thinking)
    assert chat.ids == rendered(turns, thinking)
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    if turns[-1]["role"] == "assistant":
        answers[-1] = f"<think></think>{answers[-1]}"
    assert runs(chat, thinking) == [f"{answer}<|end|>" for answer in answers]


def test_what_the_template_refuses_is_told(tokenizer: Any) -> None:
    picky = with_template(tokenizer, WANTS_A_USER_FIRST)
    with pytest.raises(ChatError, match="refuses it: the user speaks first"):
        encode([{"role": "system", "content": "be kind"}], picky)


GOOD = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ("hi", "expected `role` and `content`, got `hi`"),
        ({"role": "user"}, "expected `role` and `content`"),
        ({"content": "hi"}, "expected `role` and `content`"),
        ({"from": "human", "value": "hi"}, "expected `role` and `content`"),
        ({"role": None, "content": "hi"}, "expected a role, got `None`"),
        ({"role": ["user"], "content": "hi"}, "expected a role"),
        ({"role": "user", "content": None}, "expected text, got `None`"),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, "expected text"),
        ({"role": "user", "content": "a\ud800"}, "half a character"),
        ({"role": "assistant", "content": " \n"}, "the assistant says nothing"),
    ],
)
def test_a_bad_turn_is_named(turn: Any, reason: str, tokenizer: Any) -> None:
    with pytest.raises(ChatError) as refusal:
        encode([GOOD, turn], tokenizer)
    assert str(refusal.value).startswith("turn 2: ")
    assert reason in str(refusal.value)


def test_an_answer_to_nothing_is_refused(tokenizer: Any) -> None:
    """Templates cannot be asked for what comes before a first turn."""
    with pytest.raises(ChatError, match="turn 1: the assistant speaks before anything is asked"):
        encode([{"role": "assistant", "content": "hello"}, GOOD], tokenizer)
