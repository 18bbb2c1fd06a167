"""The sets of a run: what is in them, what is not and why, and what they are known by."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftkit.data.batch import Layout, stream_updates
from peftkit.data.draft import Encoder
from peftkit.data.example import IGNORED
from peftkit.data.prepare import Data, prepare_data
from peftkit.errors import InputError
from peftkit.recipe.sections.data import DataSection

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def completions(count: int, start: int = 0) -> Rows:
    numbers = range(start, start + count)
    return [{"prompt": f"double {number}", "completion": str(2 * number)} for number in numbers]


def prepare(tokenizer: Any, **section: Any) -> Data:
    stops = frozenset({tokenizer.eos_token_id})
    settled = DataSection.model_validate(section)
    encoder = Encoder(tokenizer, stops, settled.max_length, settled.too_long)
    return prepare_data(settled, encoder)


def test_every_set_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    data = prepare(
        tokenizer,
        train=[
            write(tmp_path / "train.jsonl", completions(20)),
            write(tmp_path / "more.jsonl", [{"text": "plain words"}]),
        ],
        validation=write(tmp_path / "val.jsonl", completions(5, 100)),
        test=write(tmp_path / "test.jsonl", completions(4, 200)),
    )
    facts = data.facts
    assert (facts["train"]["rows"], facts["validation"]["rows"], facts["test"]["rows"]) == (
        21,
        5,
        4,
    )
    assert facts["train"]["formats"] == ["completion", "text"]
    assert [(s["source"], s["rows"]) for s in facts["train"]["sources"]] == [
        ("more.jsonl", 1),
        ("train.jsonl", 20),
    ]
    assert sum(s["tokens"] for s in facts["train"]["sources"]) == facts["train"]["tokens"]
    assert facts["train"]["tokens"] == sum(e.length for e in data.train.examples)
    assert facts["train"]["longest"] == len("double 10") + len("20") + 2
    nothing = {"exact": 0, "near": 0}
    assert facts["leakage"] == nothing | {"pairs": [], "policy": "error"} | {
        "sets": {"validation": nothing, "test": nothing},
        "between": nothing,
    }
    assert facts["duplicates"] == nothing | {"distinct": 21, "most": [], "policy": "warn"}
    assert facts["label_conflicts"]["rows"] == 0
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("packing", [True, False])
def test_the_tokens_that_are_learnt_are_the_tokens_that_were_counted(
    *, packing: bool, tmp_path: Path, tokenizer: Any
) -> None:
    data = prepare(tokenizer, train=write(tmp_path / "train.jsonl", completions(40)))
    examples = data.train.examples
    stream = stream_updates(examples, Layout(packing, 3, 0), rows=1, seed=0)
    updates = list(islice(stream, len(examples)))
    learnt = sum(
        int(batch.targets.ne(IGNORED).sum()) for update in updates for batch in update.micro_batches
    )
    assert learnt == data.train.facts["trained_tokens"]
    assert learnt == sum(update.trained_tokens for update in updates)
    assert sum(update.real_tokens for update in updates) == data.train.facts["tokens"]


def test_validation_rows_are_held_out_of_training(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "train.jsonl", completions(100))
    data = prepare(tokenizer, train=source, validation={"fraction": 0.2})
    both = [*data.train.examples, *data.validation.examples]
    assert len(both) == 100
    assert len({example.where for example in both}) == 100
    assert data.test is None
    assert data.facts["test"] is None
    assert set(data.digests) == {"train", "validation"}


def test_bad_rows_are_refused_all_at_once(tmp_path: Path, tokenizer: Any) -> None:
    first = write(tmp_path / "a.jsonl", [*completions(2), {"prompt": "x"}])
    second = write(tmp_path / "b.jsonl", [*completions(2, 50), {"prompt": "x", "completion": ""}])
    with pytest.raises(InputError, match="2 bad rows in the training data") as refusal:
        prepare(tokenizer, train=[first, second])
    assert refusal.value.exit_code == 65
    assert refusal.value.problems == (
        "a.jsonl:3: no format fits; the row has `prompt`",
        "b.jsonl:3: column `completion` is empty",
    )
    with pytest.raises(InputError, match="1 bad row in the test data"):
        prepare(tokenizer, train=write(tmp_path / "c.jsonl", completions(9)), test=second)


def test_bad_rows_that_are_skipped_are_listed(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", [*completions(9), {"prompt": "x"}, {"text": " "}])
    facts = prepare(tokenizer, train=source, bad_rows="skip").facts["train"]
    assert facts["skipped"] == [
        {"where": "a.jsonl:10", "why": "no format fits; the row has `prompt`"},
        {"where": "a.jsonl:11", "why": "column `text` is empty"},
    ]


@pytest.mark.parametrize(
    ("policy", "cut", "dropped", "rows"), [("truncate", 2, 0, 12), ("drop", 0, 2, 10)]
)
def test_long_rows_are_counted(
    policy: str, cut: int, dropped: int, rows: int, tmp_path: Path, tokenizer: Any
) -> None:
    long = [{"prompt": str(number), "completion": "x" * 50} for number in range(2)]
    data = prepare(
        tokenizer,
        train=write(tmp_path / "a.jsonl", [*completions(10), *long]),
        validation=write(tmp_path / "b.jsonl", completions(3, 50)),
        max_length=30,
        too_long=policy,
    )
    facts = data.facts["train"]
    assert (facts["cut"], facts["dropped"], facts["rows"]) == (cut, dropped, rows)


@pytest.mark.parametrize(
    ("rows", "section"),
    [
        ([{"messages": [{"role": "user", "content": "hi"}]}], {"bad_rows": "skip"}),
        ([{"prompt": "a", "completion": "b" * 90}], {"max_length": 20, "too_long": "drop"}),
        (
            [{"prompt": "a" * 90, "completion": "b"}],
            {"max_length": 20, "too_long": "truncate", "bad_rows": "skip"},
        ),
    ],
)
@pytest.mark.parametrize("packing", [True, False])
def test_nothing_to_learn_is_refused(
    *, rows: Rows, section: dict[str, Any], packing: bool, tmp_path: Path, tokenizer: Any
) -> None:
    source = write(tmp_path / "a.jsonl", rows)
    validation = write(tmp_path / "b.jsonl", completions(3))
    with pytest.raises(InputError, match="the training data has no usable row: ") as refusal:
        prepare(tokenizer, train=source, validation=validation, packing=packing, **section)
    assert refusal.value.exit_code == 65


@pytest.mark.parametrize("name", ["validation", "test"])
def test_an_evaluation_set_without_rows_is_refused(
    name: str, tmp_path: Path, tokenizer: Any
) -> None:
    sources = {
        "train": write(tmp_path / "a.jsonl", completions(9)),
        "validation": write(tmp_path / "b.jsonl", completions(3, 50)),
        name: write(tmp_path / "c.jsonl", [{"prompt": "a", "completion": "b" * 90}]),
    }
    with pytest.raises(
        InputError, match=f"the {name} data has no usable row: 0 skipped, 1 drop"
    ) as no:
        prepare(tokenizer, max_length=20, too_long="drop", **sources)
    assert "data.too_long=error" in no.value.hint


def test_one_row_cannot_be_split(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", completions(1) * 3)
    with pytest.raises(InputError, match="no row can be held out for validation") as refusal:
        prepare(tokenizer, train=source)
    assert "data.validation" in str(refusal.value.hint)


def test_leaks_are_settled_in_every_set(tmp_path: Path, tokenizer: Any) -> None:
    sources = {
        "train": write(tmp_path / "a.jsonl", completions(9)),
        "validation": write(tmp_path / "b.jsonl", completions(3, 8)),
        "test": write(tmp_path / "c.jsonl", completions(4, 7)),
    }
    with pytest.raises(InputError, match="3 held-out rows are also trained on") as refusal:
        prepare(tokenizer, **sources)
    assert refusal.value.problems[0].startswith("b.jsonl:1 repeats a.jsonl:9: ")
    removed = prepare(tokenizer, leakage="remove", **sources).facts
    assert (removed["train"]["rows"], removed["validation"]["rows"], removed["test"]["rows"]) == (
        *(9, 2, 2),
    )
    assert removed["leakage"]["exact"] == 3
    kept = prepare(tokenizer, leakage="warn", **sources).facts
    assert (kept["validation"]["rows"], kept["test"]["rows"]) == (3, 4)


def test_a_set_that_leaks_as_a_whole_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", completions(9))
    other = write(tmp_path / "b.jsonl", completions(9))
    with pytest.raises(InputError, match="every validation row is in two sets") as refusal:
        prepare(tokenizer, train=source, validation=other, leakage="remove")
    assert refusal.value.exit_code == 65


def test_the_digest_tells_every_token_and_what_is_learnt(tmp_path: Path, tokenizer: Any) -> None:
    def digest(rows: Rows, **section: Any) -> str:
        validation = write(tmp_path / "v.jsonl", [{"text": "something else"}])
        source = write(tmp_path / "a.jsonl", rows)
        return prepare(tokenizer, train=source, validation=validation, **section).digests["train"]

    rows = completions(5)
    assert digest(rows) == digest(rows)
    changed = [
        rows,
        rows[::-1],
        rows[:-1],
        [*rows[:-1], {"prompt": "double 4", "completion": "9"}],
        [*rows[:-1], {"prompt": "double ", "completion": "48"}],  # the same tokens, more learnt
    ]
    assert len({digest(each) for each in changed}) == len(changed)
    kept = prepare(tokenizer, train=str(tmp_path / "a.jsonl")).train
    flipped = kept.examples[0].trained.copy()
    assert np.flatnonzero(flipped).size
    flipped[np.flatnonzero(flipped)[0]] = False
    before = kept.digest
    kept.examples[0].trained[:] = flipped
    assert kept.digest != before
