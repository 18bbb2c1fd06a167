"""Every row of every kind of file is read as it stands, or named with its file and line."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.readers import DOCUMENT_END, READERS
from peftkit.data.rows import Bad, Intake, Row
from peftkit.data.sources import find_files, read_rows
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.data import SourceSection

ROWS = [
    {"prompt": "one, two", "completion": 'say "hi"'},
    {"prompt": "three\tfour", "completion": "ü\u2028🙂\x0cend"},
    {"prompt": "", "completion": "x"},
]


def some_tables(letters: some.SearchStrategy[str]) -> Any:
    """Rows of two columns of text."""
    prompts, answers = some.text(letters, max_size=20), some.text(letters, min_size=1, max_size=20)
    row = some.fixed_dictionaries({"prompt": prompts, "completion": answers})
    return some.lists(row, min_size=1, max_size=6)


letters = some.characters(codec="utf-8")
written = some.characters(codec="utf-8", exclude_characters="\0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For hypothesis, which may not ask for a folder a test."""
    return tmp_path_factory.mktemp("rows")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="")


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    separator = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


WRITERS = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".parquet": write_parquet,
}


def read(source: Path, *, policy: str = "error", **columns: str) -> tuple[list[Row], Intake]:
    intake = Intake(policy)
    section = SourceSection(source=str(source), columns=columns)
    return list(read_rows(section, intake)), intake


def values(source: Path, **columns: str) -> list[dict[str, Any]]:
    rows, intake = read(source, **columns)
    assert not intake.found
    return [row.values for row in rows]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{kind}"
    WRITERS[kind](path, ROWS)
    rows, intake = read(path)
    assert [row.values for row in rows] == ROWS
    assert not intake.found
    numbers = (2, 3, 4) if kind in (".csv", ".tsv") else (1, 2, 3)  # the header is a line
    assert [row.where for row in rows] == [f"rows{kind}:{number}" for number in numbers]


@pytest.mark.parametrize("kind", [".json", ".parquet"])
@given(rows=some_tables(letters))
def test_any_text_survives(kind: str, rows: list[dict[str, str]], folder: Path) -> None:
    path = folder / f"any{kind}"
    WRITERS[kind](path, rows)
    assert values(path) == rows


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv"])
@given(rows=some_tables(written))
def test_any_text_survives_lines(kind: str, rows: list[dict[str, str]], folder: Path) -> None:
    path = folder / f"any{kind}"
    WRITERS[kind](path, rows)
    assert values(path) == rows


@given(
    texts=some.lists(
        some.text("ab \x0c\u2028\n", min_size=1).map(lambda t: t.strip("\n")),
        min_size=1,
        max_size=5,
    ).filter(lambda texts: all(map(str.strip, texts))),
    newline=some.sampled_from(["\n", "\r\n"]),
)
def test_a_text_file_is_cut_at_its_marks_only(texts: list[str], newline: str, folder: Path) -> None:
    path = folder / "any.txt"
    content = f"\n{DOCUMENT_END}\n".join(texts)
    path.write_text(content.replace("\n", newline), encoding="utf-8", newline="")
    rows, _ = read(path)
    assert [row.values["text"] for row in rows] == texts
    lines = content.split("\n")
    for row in rows:
        number = int(row.where.rpartition(":")[2])
        assert number == 1 or lines[number - 2] == DOCUMENT_END


def test_a_plain_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    rows, _ = read(path)
    assert [(row.values, row.where) for row in rows] == [({"text": "one\n\ntwo"}, "a.txt:1")]


def test_documents_of_nothing_are_not_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{DOCUMENT_END}\n\none\n{DOCUMENT_END}\n\n  {DOCUMENT_END}  \ntwo")
    assert values(path) == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".txt", ".json"])
def test_a_byte_order_mark_and_windows_lines_are_no_content(kind: str, tmp_path: Path) -> None:
    plain, marked = tmp_path / f"plain{kind}", tmp_path / f"marked{kind}"
    if kind == ".txt":
        plain.write_text("one\ntwo\n")
    else:
        WRITERS[kind](plain, [{"text": "one"}, {"text": "two"}])
    body = plain.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    marked.write_bytes(b"\xef\xbb\xbf" + body)
    assert values(marked) == values(plain)


def test_a_folder_is_read_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write_jsonl(tmp_path / "b" / "two.jsonl", [{"text": "2"}])
    write_csv(tmp_path / "a.csv", [{"text": "1"}])
    (tmp_path / "c.TXT").write_text("3")
    (tmp_path / "notes.md").write_text("not a row")
    rows, _ = read(tmp_path)
    assert [row.values["text"] for row in rows] == ["1", "2", "3"]
    assert [row.where for row in rows] == ["a.csv:2", "two.jsonl:1", "c.TXT:1"]


def test_a_long_line_and_a_long_field_are_read(tmp_path: Path) -> None:
    text = "word " * 200_000
    for kind in (".jsonl", ".csv", ".tsv"):
        WRITERS[kind](tmp_path / f"long{kind}", [{"text": text}])
        assert values(tmp_path / f"long{kind}") == [{"text": text}]


def test_blank_lines_are_passed_over_but_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "a"}\n  \n{"text": "b"}')
    rows, intake = read(path)
    assert [row.where for row in rows] == ["a.jsonl:2", "a.jsonl:4"]
    assert not intake.found


BAD: list[tuple[str, bytes, str, str]] = [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2", "not JSON"),
    ("a.jsonl", b'{"text": "a"}\nplain words\n', "a.jsonl:2", "starts with `plain words`"),
    ("a.jsonl", b'{"text": "a"}\n["text", "a"]\n', "a.jsonl:2", "expected an object of columns"),
    ("a.jsonl", b'{"text": "a"}\nnull\n', "a.jsonl:2", "expected an object of columns"),
    ("a.jsonl", b'{"text": "a"}\n7\n', "a.jsonl:2", "expected an object of columns"),
    ("a.jsonl", b'{"text": "a"}\n"a"\n', "a.jsonl:2", "expected an object of columns"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "b"} {"text": "c"}\n', "a.jsonl:2", "not JSON"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', "a.jsonl:2", "not UTF-8 (byte 0xe9)"),
    ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", "a.jsonl:2", "not JSON"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "a\x00b"}\n', "a.jsonl:2", "holds a NUL byte"),
    ("a.jsonl", b'{"text": "a"}\n\x00\x00\n', "a.jsonl:2", "holds a NUL byte"),
    ("a.json", b'[{"text": "a"}, "b"]', "a.json:2", "expected an object of columns, got `b`"),
    ("a.json", b'[{"text": "a"}, null]', "a.json:2", "expected an object of columns"),
    ("a.json", b'[{"text": "a"}, ["b"]]', "a.json:2", "expected an object of columns"),
    ("a.csv", b"text,label\na,1\nb\n", "a.csv:3", "expected 2 columns as in the header, got 1"),
    ("a.csv", b"text,label\na,1\nb,2,3\n", "a.csv:3", "expected 2 columns as in the header, got 3"),
    ("a.csv", b'text,label\na,1\n"b,2\nc,3\n', "a.csv:3", "lines 3 to 4 are one record"),
    ("a.csv", b'text,label\na,1\n"b"x,2\n', "a.csv:3", "bad quotes"),
    ("a.csv", b"text\na\ncaf\xe9\n", "a.csv:3", "not UTF-8 (byte 0xe9)"),
    ("a.csv", b'text\na\n"b\nb\xe9"\n', "a.csv:3", "not UTF-8 (byte 0xe9)"),
    ("a.csv", b"text\na\nb\x00\n", "a.csv:3", "holds a NUL byte"),
    ("a.txt", b"a\n<|endoftext|>\nb\n\xff\n<|endoftext|>\n", "a.txt:4", "not UTF-8 (byte 0xff)"),
    ("a.tsv", b"text\tlabel\na\t1\nb,2\n", "a.tsv:3", "expected 2 columns as in the header, got 1"),
]


@pytest.mark.parametrize(("name", "content", "where", "reason"), BAD)
def test_a_bad_row_is_named_and_the_good_ones_are_read(
    name: str, content: bytes, where: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    rows, intake = read(path, policy="skip")
    assert [row.values["text"] for row in rows] == ["a"]
    (bad,) = intake.found
    assert bad.where == where
    assert reason in bad.why
    intake.settle("training")
    refusing = Intake("error", found=intake.found)
    with pytest.raises(InputError, match="1 bad row in the training data") as refusal:
        refusing.settle("training")
    assert refusal.value.exit_code == 65
    assert refusal.value.problems == (f"{where}: {bad.why}",)


def test_reading_goes_on_after_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\xff\n{"text": "b"}\n}\n{"text": "c"}\n')
    rows, intake = read(tmp_path / "a.jsonl", policy="skip")
    assert [row.where for row in rows] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:5"]
    assert [bad.where for bad in intake.found] == ["a.jsonl:2", "a.jsonl:4"]
    (tmp_path / "a.csv").write_text('text,n\na,1\n"b"b,2\nc,3\nd\ne,5\n')
    rows, intake = read(tmp_path / "a.csv", policy="skip")
    assert [row.where for row in rows] == ["a.csv:2", "a.csv:4", "a.csv:6"]
    assert [bad.where for bad in intake.found] == ["a.csv:3", "a.csv:5"]


UNREADABLE: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b"", "is empty: no rows"),
    ("a.jsonl", b"\n \n", "is empty: no rows"),
    ("a.json", b"[]", "is empty: no rows"),
    ("a.json", b"", "is not JSON"),
    ("a.json", b'{"text": "a"}', "expected a list of objects, got dict"),
    ("a.json", b'{"text": "a"}\n{"text": "b"}\n', "is not JSON: Extra data: line 2"),
    ("a.json", b"7", "expected a list of objects, got int"),
    ("a.json", b"[" * 100_000, "is not JSON"),
    ("a.json", b'[{"text": "\xff"}]', "a.json:1: not UTF-8 (byte 0xff)"),
    ("a.csv", b"", "is empty: no rows"),
    ("a.csv", b"text,label\n", "is empty: no rows"),
    ("a.csv", b"text,text\na,b\n", "a.csv:1: bad header: `text` stands twice"),
    ("a.csv", b'"text"x\na\n', "a.csv:1: bad header"),
    ("a.csv", b"text;label\na;b\n", "a.csv:1: one column, `text;label`; expected `,` between"),
    ("a.csv", b"text\tlabel\na\tb\n", "a.csv:1: one column, `text\tlabel`; expected `,` between"),
    ("a.csv", b"t\xe9xt\na\n", "a.csv:1: bad header: not UTF-8 (byte 0xe9)"),
    ("a.txt", b"", "is empty: no rows"),
    ("a.txt", b"\n\n", "is empty: no rows"),
    ("a.txt", b"\xff\xfea\x00\n\x00", "a.txt:1: UTF-16; expected UTF-8"),
    ("a.csv", b"\xfe\xff\x00a\x00\n", "a.csv:1: UTF-16; expected UTF-8"),
    ("a.parquet", b"", "is not a parquet file"),
    ("a.parquet", b"PAR1 nothing PAR1", "is not a parquet file"),
]


@pytest.mark.parametrize(("name", "content", "reason"), UNREADABLE)
def test_a_file_that_is_bad_as_a_whole_is_refused(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        read(path, policy="skip")
    assert refusal.value.exit_code == 65
    assert name in refusal.value.message
    assert reason in refusal.value.message


def test_damage_inside_a_parquet_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [{"text": f"row {number}"} for number in range(50)])
    content = bytearray(path.read_bytes())
    content[8:60] = b"\xff" * 52
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a parquet file"):
        read(path)


def test_an_empty_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match="is empty: no rows"):
        read(path)


def test_rows_of_a_parquet_file_may_be_nested(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "a.parquet"
    write_parquet(path, [{"messages": turns}, {"messages": None}])
    assert values(path) == [{"messages": turns}, {"messages": None}]


def test_an_empty_file_beside_a_bad_row_is_still_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n}\n')
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(InputError, match=r"b\.jsonl` is empty"):
        read(tmp_path, policy="skip")


def test_a_file_of_bad_rows_only_is_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("}\n}\n")
    rows, intake = read(path, policy="skip")
    assert not rows
    assert len(intake.found) == 2


def test_many_bad_rows_are_counted_and_the_first_ones_named() -> None:
    intake = Intake("error", found=[Bad(f"a.jsonl:{number}", "not JSON") for number in range(50)])
    with pytest.raises(InputError, match="50 bad rows in the test data") as refusal:
        intake.settle("test")
    assert len(refusal.value.problems) == 21
    assert refusal.value.problems[-1] == "… and 30 more"
    assert "data.bad_rows: skip" in str(refusal.value.hint)


def test_columns_take_the_names_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"question": "q", "answer": "a", "id": 7}])
    assert values(path, prompt="question", completion="answer") == [
        {"prompt": "q", "completion": "a", "id": 7}
    ]


def test_the_column_that_the_recipe_names_wins(tmp_path: Path) -> None:
    """A data set may hold a `prompt` already, and the recipe mean another column by it."""
    path = tmp_path / "a.jsonl"
    for row in ({"question": "q", "prompt": "p"}, {"prompt": "p", "question": "q"}):
        write_jsonl(path, [row])
        assert values(path, prompt="question") == [{"prompt": "q"}]


def test_columns_may_change_places_and_serve_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"prompt": "p", "completion": "c"}])
    swapped = values(path, prompt="completion", completion="prompt")
    assert swapped == [{"prompt": "c", "completion": "p"}]
    assert values(path, text="prompt", instruction="prompt") == [
        {"text": "p", "instruction": "p", "completion": "c"}
    ]


def test_a_column_that_the_first_row_lacks_is_a_mistake_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"questio": "q", "answer": "a"}])
    with pytest.raises(InputError, match=r"a\.jsonl:1: no column `question`") as refusal:
        read(path, policy="skip", prompt="question")
    assert "`questio`, `answer`" in refusal.value.message
    assert "columns" in str(refusal.value.hint)


def test_a_column_that_a_later_row_lacks_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"question": "q"}, {"answer": "a"}, {}, {"question": "r"}])
    rows, intake = read(path, policy="skip", prompt="question")
    assert [row.values for row in rows] == [{"prompt": "q"}, {"prompt": "r"}]
    assert [(bad.where, bad.why) for bad in intake.found] == [
        ("a.jsonl:2", "no column `question`; the row has `answer`"),
        ("a.jsonl:3", "no column `question`; the row has no columns"),
    ]


def test_a_digest_is_of_the_content_alone() -> None:
    row = Row({"a": 1, "b": "ü"}, "one.jsonl:1")
    assert row.digest == Row({"b": "ü", "a": 1}, "two.csv:9").digest
    others: list[dict[str, Any]] = [
        *({"a": "1", "b": "ü"}, {"a": 1, "b": "u"}, {"a": 1}, {"a": 1, "c": "ü"}, {"a": "\ud800"}),
    ]
    digests = {Row(values, "one.jsonl:1").digest for values in others}
    assert len(digests) == 5
    assert row.digest not in digests


def test_a_missing_file_is_told_with_its_neighbors(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(RecipeError, match="no data at") as refusal:
        read(tmp_path / "trian.jsonl")
    assert refusal.value.hint == "beside it: train.jsonl"
    with pytest.raises(RecipeError, match="no data at") as refusal:
        read(tmp_path / "nowhere" / "train.jsonl")
    nowhere = f"there is no folder `{tmp_path / 'nowhere'}`"
    assert refusal.value.hint == f"{nowhere}; paths are relative to the recipe"


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    for name in ("rows.xlsx", "rows"):
        (tmp_path / name).write_text("a")
        with pytest.raises(RecipeError, match=r"expected \.jsonl, .*\.txt, .*, got") as refusal:
            read(tmp_path / name)
        assert refusal.value.exit_code == 2


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(InputError, match=r"holds no file that can be read: \.jsonl"):
        read(tmp_path)


def test_every_kind_that_can_be_read_is_tested(tmp_path: Path) -> None:
    assert {*WRITERS, ".txt"} == set(READERS)
    for kind in READERS:
        (tmp_path / f"a{kind.upper()}").write_bytes(b"x")
    found = find_files(SourceSection(source=str(tmp_path)))
    assert {path.suffix.lower() for path in found} == set(READERS)
