"""Bad input of every kind is named with its file and line, by the policy, and counted."""

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from peftkit.data.batch import Layout, stream_updates
from peftkit.data.draft import Encoder
from peftkit.data.example import IGNORED
from peftkit.data.prepare import Data, Dataset, prepare_data
from peftkit.data.task import Task
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.data import DataSection

GOOD = [{"prompt": f"double {number}: ", "completion": str(2 * number)} for number in range(4)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in GOOD)
HEADER, TABLE = b"prompt,completion\n", b"double 1:,2\ndouble 2:,4\n"
LENGTH = 64


@pytest.fixture
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), LENGTH, "error")


def prepare(path: Path, encoder: Encoder, **section: Any) -> Data:
    """The rows of one file, judged by a few others."""
    held = path.parent / "held.jsonl"
    if not held.exists():
        held.write_text('{"prompt": "held ", "completion": "out"}\n')
    values = {"train": str(path), "validation": str(held), "leakage": "off", **section}
    return prepare_data(DataSection.model_validate(values), encoder)


def assert_learnt_as_counted(data: Dataset, *, packing: bool = True) -> None:
    """Every token that is counted as trained has a target in an epoch, and no other has."""
    rows = len(data.examples)
    stream = stream_updates(data.examples, Layout(packing, 3, 0), rows=1, seed=0)
    batches = [batch for update in islice(stream, rows) for batch in update.micro_batches]
    learnt = sum(int(batch.targets.ne(IGNORED).sum()) for batch in batches)
    assert learnt == data.facts["trained_tokens"] > 0


@dataclass(frozen=True)
class Kind:
    """One kind of bad row, among good ones."""

    name: str
    content: bytes
    where: str
    why: str
    good: int = 4


def line(content: bytes, why: str, name: str = "a.jsonl") -> Kind:
    """A fifth line of a file whose other lines are good."""
    return Kind(name, LINES + content + b"\n" + LINES, f"{name}:5", why, good=8)


def row(values: Any, why: str) -> Kind:
    return line(json.dumps(values).encode(), why)


def pair(prompt: Any, completion: Any, why: str) -> Kind:
    return row({"prompt": prompt, "completion": completion}, why)


def table(content: bytes, why: str, good: int = 3) -> Kind:
    """A record behind two good ones of a table, before another unless that is swallowed."""
    return Kind("a.csv", HEADER + TABLE + content, "a.csv:4", why, good)


KINDS = {
    "no json": line(b"plain words", "not JSON: Expecting value"),
    "null": line(b"null", "expected an object of columns, got `null`"),
    "a list": line(b'["a", "b"]', 'expected an object of columns, got `["a", "b"]`'),
    "a number": line(b"7", "expected an object of columns, got `7`"),
    "two objects": line(b'{"a": 1} {"a": 2}', "not JSON: Extra data"),
    "an object without columns": row({}, "no format fits; the row has no columns"),
    "a key that is missing": row({"prompt": "a"}, "no format fits; the row has `prompt`"),
    "a value that is null": pair("a", None, "column `completion`: expected text, got `None`"),
    "a number for a text": pair("a", 7, "column `completion`: expected text, got `7`"),
    "a list for a text": pair(["a"], "b", "column `prompt`: expected text, got `['a']`"),
    "true for a text": pair("a", True, "column `completion`: expected text, got `True`"),
    "an empty answer": pair("a", "", "column `completion` is empty"),
    "an answer of spaces": pair("a", " \n\t", "column `completion` is empty"),
    "half a character": pair("a\ud800", "b", "column `prompt` holds half a character (U+D800)"),
    "a row too long": pair("a" * 99, "b", "longer than `data.max_length: 64`"),
    "a row of a million tokens": pair("a", "b" * 10**6, "1000003 tokens, longer than"),
    "no utf-8": line(b'{"prompt": "caf\xe9"}', "not UTF-8 (byte 0xe9)"),
    "a nul byte": line(b'{"prompt": "a\x00b"}', "holds a NUL byte; is it UTF-16, or no text?"),
    "not a number": line(b'{"prompt": "a", "completion": NaN}', "`NaN` is no number of JSON"),
    "no end": line(b'{"prompt": "a", "n": -Infinity}', "`-Infinity` is no number of JSON"),
    "a key twice": line(b'{"text": "a", "text": "b"}', "`text` stands twice in one object"),
    "nested deeply": line(b'{"a": ' + b"[" * 80 + b"]" * 80 + b"}", "nested more than 64 deep"),
    "nested without end": line(b"[" * 100_000, "nested more than 64 deep"),
    "a number of many digits": line(b'{"n": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
    "another format": row({"question": "a", "answer": "b"}, "no format fits; the row has"),
    "a last line cut off": Kind(
        "a.jsonl", LINES + b'{"prompt": "dou', "a.jsonl:5", "the file ends in this line"
    ),
    "no chat": row({"messages": "hello"}, "column `messages`: expected a list of turns"),
    "a chat of nothing": row({"messages": []}, "column `messages`: expected a list of turns"),
    "a turn without a role": row(
        {"messages": [{"content": "a"}]}, "turn 1: expected `role` and `content`"
    ),
    "a chat without an answer": row(
        {"messages": [{"role": "user", "content": "a"}]}, "no token carries loss"
    ),
    "too few columns": table(b"a\nb,c\n", "expected 2 columns as in the header, got 1"),
    "too many columns": table(b"a,b,c\nb,c\n", "expected 2 columns as in the header, got 3"),
    "text after a quote": table(b'"a"x,b\nb,c\n', "bad quotes: ',' expected after '\"'"),
    "a quote that stays open": table(b'"a,b\nb,c\n', "so lines 4 to 5 are one record", good=2),
    "a bad record of lines": table(b'"a\nb"\nb,c\n', "expected 2 columns"),
    "no utf-8 in a table": table(b"caf\xe9,b\nb,c\n", "not UTF-8 (byte 0xe9)"),
    "a nul byte in a table": table(b"a\x00,b\nb,c\n", "holds a NUL byte"),
    "an empty field": table(b"a,\nb,c\n", "column `completion` is empty"),
    "a document that is no text": Kind(
        "a.txt", b"one\n<|endoftext|>\ntwo\nthr\xe9e\n", "a.txt:4", "not UTF-8 (byte 0xe9)", good=1
    ),
    "no object in a list": Kind(
        "a.json", b"[%s, 7]" % LINES.split(b"\n")[0], "a.json:2", "expected an object", good=1
    ),
    "no json in an archive": Kind(
        "a.jsonl.gz", gzip.compress(LINES + b"}\n"), "a.jsonl.gz:5", "not JSON"
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_bad_row_is_refused_or_skipped_by_name(
    kind: Kind, tmp_path: Path, encoder: Encoder
) -> None:
    path = tmp_path / kind.name
    path.write_bytes(kind.content)
    with pytest.raises(InputError) as refusal:
        prepare(path, encoder)
    assert refusal.value.exit_code == 65
    assert refusal.value.message == "1 bad row in the training data"
    (problem,) = refusal.value.problems
    assert problem.startswith(f"{kind.where}: ")
    assert kind.why in problem
    assert "data.bad_rows: skip" in (refusal.value.hint or "")
    data = prepare(path, encoder, bad_rows="skip")
    facts = data.facts["train"]
    assert [f"{bad['where']}: {bad['why']}" for bad in facts["skipped"]] == [problem]
    assert facts["rows"] == kind.good
    assert_learnt_as_counted(data.train)


def test_there_are_enough_kinds() -> None:
    assert len(KINDS) >= 30


def write_cut(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[: len(whole) // 2])


def write_parquet(path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(GOOD * 500), path)


def cut_parquet(folder: Path) -> Path:
    write_parquet(folder / "a.parquet")
    os.truncate(folder / "a.parquet", (folder / "a.parquet").stat().st_size // 2)
    return folder / "a.parquet"


def put(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def zst(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def dangling(folder: Path) -> Path:
    (folder / "a.jsonl").symlink_to(folder / "gone.jsonl")
    return folder / "a.jsonl"


def folder_of_nothing(folder: Path) -> Path:
    (folder / "a.jsonl").mkdir()
    return folder / "a.jsonl"


MANY = LINES * 2000
WHOLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an empty file": (put("a.jsonl", b""), "is empty: no rows"),
    "blank lines only": (put("a.jsonl", b"\n \n\n"), "is empty: no rows"),
    "a header only": (put("a.csv", HEADER), "is empty: no rows"),
    "a column twice": (put("a.csv", b"a,a\n1,2\n"), "a.csv:1: bad header: `a` stands twice"),
    "an empty archive": (put("a.jsonl.gz", gzip.compress(b"")), "is empty: no rows"),
    "no archive": (put("a.jsonl.gz", LINES), "is a damaged or truncated archive: not a gzipped"),
    "an archive cut off": (
        put("a.jsonl.gz", gzip.compress(MANY)[:-200]),
        "`a.jsonl.gz` is a damaged or truncated archive: compressed file ended",
    ),
    "an archive with a flaw": (
        put("a.jsonl.gz", gzip.compress(MANY)[:-8] + b"\x00" * 8),
        "`a.jsonl.gz` is a damaged or truncated archive: crc check failed",
    ),
    "no zst": (put("a.csv.zst", LINES), "`a.csv.zst` is a damaged or truncated archive: zstd"),
    "a zst cut off": (
        put("a.jsonl.zst", zst(MANY)[:-100]),
        "`a.jsonl.zst` is a damaged or truncated archive: truncated",
    ),
    "a parquet file cut off": (cut_parquet, "`a.parquet` is not a parquet file, or a damaged one"),
    "no parquet file": (put("a.parquet", LINES), "`a.parquet` is not a parquet file"),
    "utf-16": (put("a.csv", "a,b\n1,2\n".encode("utf-16")), "a.csv:1: UTF-16; expected UTF-8"),
    "one object as a list": (
        put("a.json", b'{"text": "a"}'),
        "expected a list of objects, got dict",
    ),
    "lines as a list": (put("a.json", LINES), "is not JSON: Extra data"),
    "a list cut off": (put("a.json", b'[{"text": "a"}, {"te'), "is not JSON: Unterminated string"),
    "a key twice in a list": (put("a.json", b'[{"a": 1, "a": 2}]'), "`a` stands twice"),
    "a folder of that name": (folder_of_nothing, "a.jsonl` holds no file that can be read"),
    "a dangling link": (dangling, "is a link to"),
    "no format": (put("a.jsonl", b'{"question": "a"}\n'), "a.jsonl:1: no format fits"),
}


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize(("make", "why"), WHOLE.values(), ids=WHOLE)
def test_a_file_that_is_bad_as_a_whole_is_refused_under_any_policy(
    make: Callable[[Path], Path], why: str, policy: str, tmp_path: Path, encoder: Encoder
) -> None:
    with pytest.raises(InputError) as refusal:
        prepare(make(tmp_path), encoder, bad_rows=policy)
    assert refusal.value.exit_code == 65
    assert why in refusal.value.message


@pytest.mark.parametrize(
    "kind", ["jsonl", "csv", "txt", "json", "jsonl.gz", "jsonl.zst", "parquet"]
)
def test_a_file_that_the_system_does_not_give_is_told(
    kind: str, tmp_path: Path, encoder: Encoder
) -> None:
    """Not even root may read this one, so the test is the same for everybody."""
    (tmp_path / f"a.{kind}").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=rf"a\.{kind}`"):
        prepare(tmp_path / f"a.{kind}", encoder)


def test_what_is_no_content_changes_nothing_and_is_counted(
    tmp_path: Path, encoder: Encoder
) -> None:
    """A byte order mark, Windows' line ends, blank lines and an `id` that comes twice are fine."""
    (tmp_path / "plain.jsonl").write_bytes(LINES)
    lines = LINES.replace(b'{"', b'{"id": 7, "').replace(b"\n", b"\r\n")
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + lines + b"  \r\n\r\n")
    plain = prepare(tmp_path / "plain.jsonl", encoder)
    marked = prepare(tmp_path / "marked.jsonl", encoder)
    assert marked.digests == plain.digests
    assert marked.train.examples[0].where == "marked.jsonl:2"
    assert (plain.facts["train"]["blank"], marked.facts["train"]["blank"]) == (0, 3)
    assert marked.facts["train"]["skipped"] == []


def test_blank_lines_of_a_table_are_counted_and_a_record_begins_where_it_does(
    tmp_path: Path, encoder: Encoder
) -> None:
    (tmp_path / "a.csv").write_bytes(HEADER + b'\n"a\nb",c\n\n\nd,e\n')
    data = prepare(tmp_path / "a.csv", encoder)
    assert [example.where for example in data.train.examples] == ["a.csv:3", "a.csv:7"]
    assert data.facts["train"]["blank"] == 3


def test_formats_may_be_mixed_in_one_file(tmp_path: Path, encoder: Encoder) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = [GOOD[0], {"text": "plain"}, chat]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = prepare(tmp_path / "a.jsonl", encoder)
    assert data.facts["train"]["formats"] == ["chat", "completion", "text"]
    assert_learnt_as_counted(data.train)


@pytest.mark.parametrize(("policy", "facts"), [("drop", (4, 1, 0)), ("truncate", (5, 0, 1))])
def test_a_line_of_a_megabyte_is_a_long_row_and_no_more(
    policy: str, facts: tuple[int, int, int], tmp_path: Path, encoder: Encoder
) -> None:
    long = {"prompt": "a", "completion": "b" * 10**6}
    (tmp_path / "a.jsonl").write_bytes(LINES + json.dumps(long).encode() + b"\n")
    data = prepare(tmp_path / "a.jsonl", replace(encoder, too_long=policy), too_long=policy)
    found = data.facts["train"]
    assert (found["rows"], found["dropped"], found["cut"]) == facts
    assert found["longest"] <= LENGTH
    assert_learnt_as_counted(data.train)


def test_a_text_of_a_million_tokens_is_cut_and_none_is_lost(
    tmp_path: Path, encoder: Encoder
) -> None:
    (tmp_path / "a.txt").write_text("b" * 10**6)
    facts = prepare(tmp_path / "a.txt", encoder).facts["train"]
    assert facts["tokens"] == 10**6 + 2
    assert facts["rows"] == -(-facts["tokens"] // LENGTH)


@pytest.mark.parametrize("packing", [True, False])
def test_rows_without_an_answer_after_cutting_are_bad(
    *, packing: bool, tmp_path: Path, encoder: Encoder
) -> None:
    masked = [{"prompt": "a" * 99 + str(number), "completion": "b"} for number in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in masked))
    cutting = replace(encoder, too_long="truncate")
    with pytest.raises(InputError, match="3 bad rows in the training data") as refusal:
        prepare(tmp_path / "a.jsonl", cutting, packing=packing)
    assert refusal.value.problems[2] == "a.jsonl:3: no token carries loss after cutting"
    with pytest.raises(InputError, match="no usable row: 3 skipped, 0 dropped") as refusal:
        prepare(tmp_path / "a.jsonl", cutting, packing=packing, bad_rows="skip")
    assert refusal.value.exit_code == 65
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(LINES)
    data = prepare(tmp_path / "a.jsonl", cutting, packing=packing, bad_rows="skip")
    assert [bad["where"] for bad in data.facts["train"]["skipped"]] == [
        *("a.jsonl:1", "a.jsonl:2", "a.jsonl:3"),
    ]
    assert_learnt_as_counted(data.train, packing=packing)


LABELS: dict[str, tuple[str, Any, str]] = {
    "none of those": ("classification", "blue", "`blue` is none of `base.labels`: red, green"),
    "no name": ("classification", None, "column `label`: expected a name, got `None`"),
    "nothing": ("classification", " ", "column `label`: expected a name"),
    "a number that ends nowhere": ("regression", "inf", "column `label`: expected a finite number"),
    "a number too large": ("regression", 10**400, "column `label`: expected a number"),
    "no number": ("regression", "many", "column `label`: expected a number, got `many`"),
    "no list": ("multi-label", "red", "column `label`: expected a list, got `red`"),
}


@pytest.mark.parametrize(("task", "label", "why"), LABELS.values(), ids=LABELS)
def test_a_label_that_cannot_be_is_named(
    task: str, label: Any, why: str, tmp_path: Path, encoder: Encoder
) -> None:
    right: dict[str, Any] = {"classification": "red", "regression": 1.5, "multi-label": ["red"]}
    rows = [{"text": "a", "label": right[task]}, {"text": "b", "label": label}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "held.jsonl").write_text(json.dumps(rows[0]) + "\n")
    named = () if task == "regression" else ("red", "green")
    judging = replace(encoder, task=task, labels=named)
    with pytest.raises(InputError) as refusal:
        prepare(tmp_path / "a.jsonl", judging)
    (problem,) = refusal.value.problems
    assert problem.startswith("a.jsonl:2: ")
    assert why in problem
    data = prepare(tmp_path / "a.jsonl", judging, bad_rows="skip")
    assert len(data.facts["train"]["skipped"]) == 1
    assert data.train.facts["trained_tokens"] == sum(map(Task(task).count, data.train.examples))


def test_many_bad_rows_of_several_files_are_all_counted(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "data").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "data" / name).write_bytes(b"}\n" * 30 + LINES)
    with pytest.raises(InputError, match="60 bad rows in the training data") as refusal:
        prepare(tmp_path / "data", encoder)
    assert refusal.value.problems[-1] == "… and 40 more"
    facts = prepare(tmp_path / "data", encoder, bad_rows="skip").facts["train"]
    assert len(facts["skipped"]) == 60
    assert facts["rows"] == 8


def test_a_source_that_is_not_there_is_the_recipes_mistake(
    tmp_path: Path, encoder: Encoder
) -> None:
    with pytest.raises(RecipeError, match="no data at") as refusal:
        prepare(tmp_path / "a.jsonl", encoder)
    assert refusal.value.exit_code == 2
