"""Copies change what the model reads and nothing else, and follow from the row they are of."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.augment import LARGEST, augment, change_values, key_of
from peftkit.data.draft import Encoder, Reading
from peftkit.data.prepare import Data, prepare_data
from peftkit.errors import InputError, PeftkitError, RecipeError
from peftkit.recipe.sections.augment import AugmentSection
from peftkit.recipe.sections.data import DataSection

WORDS = ("open", "the", "door", "of", "garage", "and", "close", "it", "again", "please")
STRONG = {"copies": 1, "drop": 0.3, "typos": 0.3, "case": 0.3}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sentence(number: int) -> str:
    return (
        " ".join(WORDS[(number * step + step) % len(WORDS)] for step in range(1, 9)) + f" {number}"
    )


def labelled(counts: dict[str, int]) -> list[dict[str, Any]]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [{"text": sentence(number), "label": label} for number, label in enumerate(labels)]


def prepare(tokenizer: Any, task: str = "causal-lm", seed: int = 0, **section: Any) -> Data:
    settled = DataSection.model_validate({"leakage": "error", "max_length": 200} | section)
    stops = frozenset({tokenizer.eos_token_id})
    encoder = Encoder(tokenizer, stops, settled.max_length, settled.too_long, task)
    return prepare_data(settled, encoder, seed=seed)


ROWS: dict[str, dict[str, Any]] = {
    "completion": {"prompt": sentence(1), "completion": sentence(2)},
    "instruction": {"instruction": sentence(1), "input": sentence(3), "output": sentence(2)},
    "classification": {"text": sentence(1), "text_pair": sentence(4), "label": "open the door"},
    "similar": {"anchor": sentence(1), "positive": sentence(2), "negative": sentence(3)},
    "tokens": {"tokens": sentence(1).split(), "tags": [f"tag-of-{n}" for n in range(9)]},
    "text": {"text": sentence(1)},
    "chat": {
        "messages": [
            {"role": "system", "content": sentence(0)},
            {"role": "user", "content": sentence(1)},
            {"role": "assistant", "content": sentence(2), "train": True},
            {"role": "user", "content": sentence(3)},
            {"role": "assistant", "content": sentence(4)},
        ]
    },
}
READ = {
    "completion": {"prompt"},
    "instruction": {"instruction", "input"},
    "classification": {"text", "text_pair"},
    "similar": {"anchor"},
    "tokens": {"tokens"},
    "text": set(),
}


@given(kind=some.sampled_from(sorted(ROWS)), seed=some.integers(0, 10**6))
def test_answers_and_labels_are_never_changed(kind: str, seed: int) -> None:
    wanted = AugmentSection(copies=1, drop=0.4, typos=0.4, case=0.4, spacing=0.4)
    values, done = ROWS[kind], Counter[str]()
    found = change_values(values, kind, wanted, np.random.default_rng(seed), done)
    again = change_values(values, kind, wanted, np.random.default_rng(seed), Counter())
    assert found == again
    assert found.keys() == values.keys()
    if kind == "chat":
        pairs = list(zip(values["messages"], found["messages"], strict=True))
        assert all(turn == other for turn, other in pairs if turn["role"] != "user")
        assert all(turn.keys() == other.keys() for turn, other in pairs)
    else:
        assert {name for name in values if values[name] != found[name]} <= READ[kind]
    assert len(found.get("tokens", ())) == len(values.get("tokens", ()))
    assert (found == values) or sum(done.values()) > 0


def test_copies_stand_beside_their_rows_in_training_alone(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": sentence(n), "completion": sentence(n + 500)} for n in range(60)]
    source = write(tmp_path / "rows.jsonl", rows)
    plain = prepare(tokenizer, train=source, validation={"fraction": 0.2})
    data = prepare(
        tokenizer, train=source, validation={"fraction": 0.2}, augment={**STRONG, "copies": 2}
    )
    count = len(plain.train.examples)
    assert data.validation.digest == plain.validation.digest
    assert data.checks.leakage == plain.checks.leakage
    assert [e.where for e in data.train.examples[:count]] == [e.where for e in plain.train.examples]
    copies = data.augmented.examples
    assert [e.where for e in data.train.examples[count:]] == [e.where for e in copies]
    facts = data.facts["train"]["augmented"]
    assert facts["rows"] == len(copies) == 2 * count - facts["unchanged"] - facts["left_out"]
    assert len(copies) > 1.9 * count
    own = {example.where: example for example in plain.train.examples}
    for copy in copies:
        original = own[copy.where.rpartition("~")[0]]
        assert copy.where.rpartition("~")[2] in ("1", "2")
        assert copy.answer == original.answer
        assert copy.prompt != original.prompt
        assert copy.source == original.source
        assert data.augmented.changes[key_of(copy)]
    assert sum(facts["changes"].values()) >= len(copies)
    assert facts["changes"].keys() <= {"drop", "typos", "case", "spacing", "emoji"}


def test_what_was_changed_is_told_of_the_right_one_of_two_files_of_a_name(
    tmp_path: Path, tokenizer: Any
) -> None:
    """Each file has a row 1, so `a.jsonl:1~1` is two copies."""
    alone = {}
    sources = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        rows = [
            {"prompt": f"{name} {sentence(number)}", "completion": str(number)}
            for number in range(30)
        ]
        sources.append({"source": write(tmp_path / name / "a.jsonl", rows), "format": "completion"})
        data = prepare(tokenizer, train=sources[-1:], augment=STRONG)
        told = zip(data.augmented.examples, data.augmented.changes.values(), strict=True)
        alone |= {copy.text: said for copy, said in told}
    both = prepare(tokenizer, train=sources, augment=STRONG).augmented
    found = {copy.text: both.changes[key_of(copy)] for copy in both.examples}
    both_times = found.keys() & alone.keys()  # another row may be held out
    assert {text: found[text] for text in both_times} == {text: alone[text] for text in both_times}
    assert len(both_times) > 40


def test_copies_are_of_the_commit_whose_rows_were_read(tokenizer: Any) -> None:
    folder = Path(constants.HF_HUB_CACHE) / "datasets--org--copied"
    (folder / "refs").mkdir(parents=True)
    for commit, word in (("a" * 40, "old"), ("b" * 40, "new")):
        (folder / "snapshots" / commit).mkdir(parents=True)
        rows = [{"prompt": f"{word} {sentence(n)}", "completion": "well"} for n in range(20)]
        write(folder / "snapshots" / commit / "train.jsonl", rows)
        (folder / "refs" / "main").write_text(commit)
    section = DataSection.model_validate({"train": "hub:org/copied", "augment": {"copies": 1}})
    reading = Reading(commits={"hub:org/copied": "a" * 40})
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), 200, "error", reading=reading)
    copies = prepare_data(section, encoder).augmented.examples
    assert copies
    assert not any("new" in copy.prompt for copy in copies)


def test_a_copy_follows_from_its_row_and_the_seed(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": sentence(n), "completion": "yes"} for n in range(30)]
    few = write(tmp_path / "few.jsonl", rows[10:20])
    more = write(tmp_path / "more.jsonl", rows)

    def copies(source: str, seed: int = 0) -> dict[str, str]:
        data = prepare(
            tokenizer,
            seed=seed,
            train={"source": source, "columns": {"prompt": "prompt"}},
            validation={"fraction": 0.1},
            augment=STRONG,
        )
        own = {e.where: e.digest for e in data.train.examples}
        return {own[e.where.removesuffix("~1")]: e.text for e in data.augmented.examples}

    some_rows, every = copies(few), copies(more)
    shared = some_rows.keys() & every.keys()
    assert len(shared) >= 8
    assert all(some_rows[digest] == every[digest] for digest in shared)
    assert copies(few) == some_rows
    other = copies(few, seed=1)
    assert any(other[digest] != some_rows[digest] for digest in other.keys() & shared)


def test_short_texts_are_changed_too(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"red {number} door", "completion": "x"} for number in range(40)]
    rows += [{"prompt": f"{number} {number}", "completion": "x"} for number in range(5)]
    source = write(tmp_path / "rows.jsonl", rows)
    held = write(tmp_path / "held.jsonl", [{"prompt": "else", "completion": "y"}])
    data = prepare(tokenizer, train=source, validation=held, augment={"copies": 1})
    facts = data.facts["train"]["augmented"]
    assert (facts["rows"], facts["unchanged"]) == (40, 5)
    own = {example.prompt for example in data.train.examples[:45]}
    assert all(copy.prompt not in own for copy in data.augmented.examples)


def test_templates_fill_small_classes(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "rows.jsonl", labelled({"big": 20, "small": 8, "tiny": 3}))
    held = write(tmp_path / "held.jsonl", [{"text": "something else", "label": "big"}])
    templates = ["customer wrote: {text}", "{text} (sent from a phone)"]
    common = {"train": source, "validation": held}
    data = prepare(tokenizer, "classification", **common, augment={"templates": templates})
    counts = Counter(example.labels[0] for example in data.train.examples)
    assert counts == {"big": 20, "small": 20, "tiny": 9}  # three rows in two templates are six more
    framed = data.augmented.examples
    assert len({example.text for example in framed}) == len(framed) == 18
    for example in framed:
        number = int(example.where.rpartition("~")[2])
        before, after = templates[number - 1].split("{text}")
        assert example.text.startswith(before)
        assert example.text.endswith(after)
    assert data.facts["train"]["augmented"]["changes"] == {"templates": 18}
    assert set(data.augmented.changes.values()) == {f"in `{each}`" for each in templates}
    fixed = prepare(
        tokenizer,
        "classification",
        **common,
        augment={"templates": templates, "fill": 5},
    )
    assert Counter(e.labels[0] for e in fixed.train.examples) == {"big": 20, "small": 8, "tiny": 5}


def test_a_copy_that_became_too_long_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "rows.jsonl", labelled({"a": 9, "b": 3}))
    held = write(tmp_path / "held.jsonl", [{"text": "something else", "label": "a"}])
    longest = max(len(sentence(number)) for number in range(12)) + 2
    data = prepare(
        tokenizer,
        "classification",
        train=source,
        validation=held,
        max_length=longest,
        augment={"templates": ["! {text}", "and so on and so on and so on: {text}"]},
    )
    facts = data.facts["train"]["augmented"]
    assert facts["left_out"] > 0
    assert facts["rows"] + facts["left_out"] == 6


def test_off_by_default_nothing_is_read_again(tmp_path: Path, tokenizer: Any) -> None:
    data = prepare(
        tokenizer,
        train=write(
            tmp_path / "a.jsonl",
            [ROWS["completion"]] * 2 + [{"prompt": "x y z", "completion": "w"}],
        ),
        validation={"fraction": 0.5},
    )
    assert data.augmented.examples == ()
    assert data.facts["train"]["augmented"]["rows"] == 0


@pytest.mark.parametrize(
    ("task", "rows", "augmenting", "kind", "message"),
    [
        ("causal-lm", [{"text": sentence(n)} for n in range(9)], STRONG, InputError, "no training"),
        (
            "causal-lm",
            [{"prompt": sentence(n), "completion": "x"} for n in range(9)],
            {"templates": ["a {text}"]},
            RecipeError,
            "a causal-lm base has none",
        ),
    ],
)
def test_what_cannot_be_augmented_is_told(
    task: str,
    rows: list[dict[str, Any]],
    augmenting: dict[str, Any],
    kind: type[PeftkitError],
    message: str,
    tmp_path: Path,
    tokenizer: Any,
) -> None:
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(kind, match=message):
        prepare(tokenizer, task, train=source, augment=augmenting)


def test_more_rows_than_are_small_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    data = prepare(
        tokenizer,
        train=write(
            tmp_path / "a.jsonl", [{"prompt": sentence(n), "completion": "x"} for n in range(9)]
        ),
    )
    section = DataSection(train=({"source": "a.jsonl"},), augment=AugmentSection(copies=100))  # type: ignore[arg-type]
    encoder = Encoder(tokenizer, frozenset(), 99, "error")
    many = [data.train.examples[0]] * (LARGEST // 100 + 1)
    with pytest.raises(InputError, match="100 copies of 2,001 rows are more than 200,000"):
        augment(section, many, ["a.jsonl"], encoder, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"templates": ["no place"]},
        {"templates": ["{text}"]},
        {"templates": ["{text} {text}"]},
        {"templates": ["a {text}", "a {text}"]},
        {"copies": -1},
        {"drop": 1.5},
    ],
)
def test_an_impossible_section_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"template|copies|drop"):
        AugmentSection.model_validate(wrong)
