"""The key changes with everything the examples follow from, and with nothing else."""

import copy
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from peftkit.data import token_key
from peftkit.data.draft import Encoder, Reading
from peftkit.data.token_key import (
    NOT_READ,
    TOLD_OTHERWISE,
    describe_tokenizer,
    digest_code,
    make_key,
)
from peftkit.recipe.sections.data import SourceSection
from peftkit.recipe.sections.learn import LearnSection


def key(folder: Path, tokenizer: Any, **changed: Any) -> str | None:
    """The key of two files, in which one thing may be changed."""
    files = {"a.jsonl": '{"text": "one"}\n', "b.jsonl": '{"text": "two"}\n'} | changed.pop(
        "files", {}
    )
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    section = {name: changed.pop(name) for name in ("format", "columns") if name in changed}
    source = SourceSection(source=str(folder), **section)
    plan: dict[str, Any] = {"stops": frozenset({2, 4}), "max_length": 64, "too_long": "drop"}
    bad_rows, name = changed.pop("bad_rows", "skip"), changed.pop("name", "data")
    paths = [folder / file for file in changed.pop("order", sorted(files))]
    return make_key(source, name, paths, bad_rows, Encoder(tokenizer, **(plan | changed)))


@pytest.mark.parametrize(
    "changed",
    [
        *({"files": {"a.jsonl": text}} for text in ('{"text": "onE"}\n', '{"text": "one"}', "")),
        {"files": {"c.jsonl": '{"text": "three"}\n'}},
        {"order": ["b.jsonl", "a.jsonl"]},
        {"order": ["a.jsonl"]},
        {"name": "other"},
        {"format": "text"},
        {"columns": {"text": "body"}},
        {"columns": {"prompt": "a", "completion": "b"}},
        {"max_length": 63},
        {"too_long": "truncate"},
        {"bad_rows": "error"},
        {"stops": frozenset({2})},
        {"stops": frozenset({2, 4, 5})},
    ],
    ids=str,
)
def test_another_source_or_recipe_has_another_key(
    changed: dict[str, Any], tmp_path: Path, tokenizer: Any
) -> None:
    before = key(tmp_path, tokenizer)
    assert before is not None
    assert key(tmp_path, tokenizer, **changed) not in (before, None)


def other_than(value: Any, annotation: Any = None) -> Any:
    """Something else of the same kind."""
    if get_origin(annotation) is Literal:
        return next(each for each in get_args(annotation) if each != value)
    kinds: dict[type, Any] = {
        bool: lambda: not value,
        int: lambda: value + 1,
        float: lambda: value + 1,
        str: lambda: value + "x",
        tuple: lambda: (*value, "x"),
        frozenset: lambda: value | {99},
        dict: lambda: {**value, "x": "y"},
        LearnSection: lambda: LearnSection(turns="last"),
    }
    return kinds[type(value)]()


def test_each_setting_counts_and_one_that_is_added_does_too(tmp_path: Path, tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, frozenset({2}), 64, "drop")
    source = SourceSection(source=str(tmp_path))
    settings = [
        each.name for each in fields(Encoder) if each.init and each.name not in TOLD_OTHERWISE
    ]
    keys = [make_key(source, "data", [], "skip", encoder)]
    for name in settings:
        changed = replace(encoder, **{name: other_than(getattr(encoder, name))})
        keys.append(make_key(source, "data", [], "skip", changed))
    columns = {n: f for n, f in SourceSection.model_fields.items() if n not in NOT_READ}
    for name, told in columns.items():
        value = other_than(getattr(source, name), told.annotation)
        changed_source = SourceSection.model_validate({"source": str(tmp_path), name: value})
        keys.append(make_key(changed_source, "data", [], "skip", encoder))
    assert None not in keys
    assert len(set(keys)) == 1 + len(settings) + len(columns) >= 8


def test_where_rows_are_taken_from_does_not_count(tmp_path: Path, tokenizer: Any) -> None:
    reading = Reading(fresh=True, commits={"hub:org/set": "0" * 40})
    assert key(tmp_path, tokenizer, reading=reading) == key(tmp_path, tokenizer)


def test_columns_count_in_their_order(tmp_path: Path, tokenizer: Any) -> None:
    """Messages about a row list its columns in that order."""
    columns = {"prompt": "a", "completion": "b"}
    turned = dict(reversed(columns.items()))
    assert key(tmp_path, tokenizer, columns=columns) != key(tmp_path, tokenizer, columns=turned)


def test_a_file_counts_by_its_name(tmp_path: Path, tokenizer: Any) -> None:
    before = key(tmp_path / "here", tokenizer)
    (tmp_path / "here" / "c.jsonl").write_bytes((tmp_path / "here" / "b.jsonl").read_bytes())
    assert key(tmp_path / "here", tokenizer, order=["a.jsonl", "c.jsonl"]) != before


def rename_class(tokenizer: Any) -> None:
    class Other(PreTrainedTokenizerFast):
        pass

    Other.__module__ = "transformers.models.other"
    tokenizer.__class__ = Other


CHANGES = {
    "a word more": lambda t: t.add_tokens(["<new>"]),
    "a special word": lambda t: t.add_tokens([AddedToken("q", lstrip=True)], special_tokens=True),
    "another end": lambda t: setattr(t, "eos_token", "<|user|>"),
    "no end": lambda t: setattr(t, "eos_token", None),
    "another template": lambda t: setattr(t, "chat_template", t.chat_template + " "),
    "no template": lambda t: setattr(t, "chat_template", None),
    "several templates": lambda t: setattr(t, "chat_template", {"default": t.chat_template}),
    "split specials": lambda t: setattr(t, "split_special_tokens", True),
    "cleaning up": lambda t: setattr(t, "clean_up_tokenization_spaces", True),
    "a normalizer": lambda t: setattr(t.backend_tokenizer, "normalizer", normalizers.Lowercase()),
    "adding the end": lambda t: setattr(t, "add_eos_token", True),
    "another class": rename_class,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_tokenizer_has_another_key(change: Any, tmp_path: Path, tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    assert key(tmp_path, other) == key(tmp_path, tokenizer)
    change(other)
    assert key(tmp_path, other) not in (key(tmp_path, tokenizer), None)


def test_the_same_from_elsewhere_has_the_same_key(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path / "copied")
    copied = AutoTokenizer.from_pretrained(tmp_path / "copied")
    assert copied.name_or_path != tokenizer.name_or_path
    copied.vocab_file = "elsewhere"
    assert key(tmp_path / "a", copied) == key(tmp_path / "b", tokenizer)


def test_what_was_encoded_before_does_not_show(tmp_path: Path, tokenizer: Any) -> None:
    used = copy.deepcopy(tokenizer)
    used(["one", "three"], padding=True, truncation=True, max_length=4)
    assert used.backend_tokenizer.padding is not None
    assert used.backend_tokenizer.truncation is not None
    assert key(tmp_path, used) == key(tmp_path, tokenizer)


@pytest.mark.parametrize("name", ["CODE", "LIBRARIES"])
def test_other_code_has_another_key(
    name: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(tmp_path, tokenizer)
    monkeypatch.setattr(token_key, name, {"CODE": "0" * 64, "LIBRARIES": ("jinja2",)}[name])
    assert key(tmp_path, tokenizer) not in (before, None)
    monkeypatch.setattr(token_key, "CODE", "")
    assert key(tmp_path, tokenizer) is None


def test_the_code_is_every_module_of_the_folder(tmp_path: Path) -> None:
    assert digest_code(tmp_path) == ""
    assert digest_code(tmp_path / "none") == ""
    (tmp_path / "a.py").write_text("A = 1\n")
    one = digest_code(tmp_path)
    (tmp_path / "b.py").write_text("")
    two = digest_code(tmp_path)
    (tmp_path / "a.py").write_text("A = 2\n")
    assert len({"", one, two, digest_code(tmp_path)}) == 4
    assert digest_code(Path(token_key.__file__).parent) == token_key.CODE
    (tmp_path / "c.py").mkdir()  # cannot be read
    assert digest_code(tmp_path) == ""


class Reversing:
    """A step in Python, which no file can hold."""

    def pre_tokenize(self, text: Any) -> None:
        raise NotImplementedError


class Derived(PreTrainedTokenizerFast):
    """Whose code has no version."""


CUSTOM = pre_tokenizers.PreTokenizer.custom
OPAQUE = {
    "a step in python": lambda t: setattr(
        t.backend_tokenizer, "pre_tokenizer", CUSTOM(Reversing())
    ),
    "one of several steps": lambda t: setattr(
        t.backend_tokenizer,
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), CUSTOM(Reversing())]),
    ),
    "a class of one's own": lambda t: setattr(t, "__class__", Derived),
    "a function": lambda t: setattr(t, "hook", print),
    "an object": lambda t: setattr(t, "model", object()),
}


@pytest.mark.parametrize("change", OPAQUE.values(), ids=OPAQUE)
def test_what_cannot_be_told_has_no_key(change: Any, tmp_path: Path, tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    change(other)
    assert describe_tokenizer(other) is None
    assert key(tmp_path, other) is None


def test_a_tokenizer_without_a_backend_has_no_key(tmp_path: Path) -> None:
    slow = type("SlowTokenizer", (), {"__module__": "transformers.models.slow"})
    assert key(tmp_path, slow()) is None


HOURS = [
    "{{ strftime_now('%H:%M') }}",
    "{{ strftime_now('%d %b') }}{{ strftime_now('%c') }}",
    "{{ strftime_now(format) }}",
    "{% set now = strftime_now %}{{ now('%s') }}",
    "{{ [1, 2] | random }}",
    "{{ lipsum() }}",
]
DAYS = [
    "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}",
    '{{ strftime_now( "%-d. %B, %A" ) }}',
]


@pytest.mark.parametrize("template", HOURS)
def test_a_template_that_says_the_hour_has_no_key(template: str, tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    assert describe_tokenizer(other) is None
    other.chat_template = {"default": "", "tool_use": template}
    assert describe_tokenizer(other) is None


@pytest.mark.parametrize("template", DAYS)
def test_a_template_that_says_the_day_has_a_key_for_the_day(
    template: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    today = describe_tokenizer(other)
    assert today is not None
    monkeypatch.setattr(token_key, "datetime", Tomorrow)
    assert describe_tokenizer(other) not in (today, None)
    other.chat_template = {"default": "'", "tool_use": template}
    assert describe_tokenizer(other) is not None


class Tomorrow(datetime):
    """A clock that is years ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> "Tomorrow":
        return cls(2099, 1, 1, tzinfo=tz)
