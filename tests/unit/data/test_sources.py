"""A source names files: packed ones, patterns and folders, read a line at a time."""

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from peftkit.data import lines, readers
from peftkit.data.readers import READERS, kind_of
from peftkit.data.rows import Intake, Row
from peftkit.data.sources import find_files, read_rows
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.data import SourceSection

ROWS = [{"text": "one"}, {"text": "two\nlines"}, {"text": "drei ü"}]


def table(separator: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["text"], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue()


TEXTS: dict[str, str] = {
    ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    ".json": json.dumps(ROWS),
    ".csv": table(","),
    ".tsv": table("\t"),
    ".txt": "\n<|endoftext|>\n".join(row["text"] for row in ROWS),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def read(source: object, policy: str = "error") -> tuple[list[Row], Intake]:
    intake = Intake(policy)
    return list(read_rows(SourceSection(source=str(source)), intake)), intake


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_packed_file_has_the_rows_and_lines_of_the_plain_one(
    kind: str, packed: str, tmp_path: Path
) -> None:
    plain, other = tmp_path / f"a{kind}", tmp_path / f"a{kind}{packed}"
    plain.write_bytes(TEXTS[kind].encode())
    content = TEXTS[kind].encode()
    half = len(content) // 2
    pack = PACKERS[packed]
    for packing in (pack(content), pack(content[:half]) + pack(content[half:])):  # as `cat` joins
        other.write_bytes(packing)
        wanted, found = read(plain)[0], read(other)[0]
        assert [row.values for row in found] == [row.values for row in wanted] == ROWS
        named = [row.where.replace(f"{packed}:", ":") for row in found]
        assert named == [row.where for row in wanted]
        assert found[0].where.startswith(f"a{kind}{packed}:")


def test_every_kind_of_text_is_packed_and_parquet_is_not() -> None:
    assert {*TEXTS, ".parquet"} == set(READERS)
    assert set(PACKERS) == set(lines.PACKED)
    assert kind_of(Path("A.JSONL.GZ")) == ".jsonl"
    for name in ("a.parquet.gz", "a.gz", "a.jsonl.gz.zst", "a.tar.gz", "gz", ".gz"):
        assert kind_of(Path(name)) is None


def test_a_record_of_several_lines_stands_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('n,text\r\n1,"a\r\nb\r\nc"\r\n2,d\r\n', newline="")
    rows, _ = read(tmp_path / "a.csv")
    assert [(row.values["text"], row.where) for row in rows] == [
        ("a\r\nb\r\nc", "a.csv:2"),
        ("d", "a.csv:5"),
    ]


def lay(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'{"text": "%s"}\n' % name.encode())


PATTERNS = {
    "*.jsonl": ["a.jsonl", "b.jsonl"],
    "**/*.jsonl": ["a.jsonl", "b.jsonl", "x/c.jsonl", "x/y/d.jsonl"],
    "x/**/*.jsonl": ["x/c.jsonl", "x/y/d.jsonl"],
    "[ab].jsonl": ["a.jsonl", "b.jsonl"],
    "?.jsonl": ["a.jsonl", "b.jsonl"],
    "b.*": ["b.jsonl"],
    "x/*/*": ["x/y/d.jsonl"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_names_files_in_name_order(pattern: str, tmp_path: Path) -> None:
    lay(tmp_path, "b.jsonl", "a.jsonl", "x/y/d.jsonl", "x/c.jsonl", "b.md")
    (tmp_path / "d.jsonl").mkdir()
    rows, _ = read(tmp_path / pattern)
    assert [row.values["text"] for row in rows] == PATTERNS[pattern]


def test_a_file_that_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    lay(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert [row.values["text"] for row in read(tmp_path / "a[1].jsonl")[0]] == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("pattern", "what", "hint"),
    [
        ("*.csv", "no file fits", "beside it: a.jsonl, x"),
        ("x/*.csv", "no file fits", "beside it: c.jsonl"),
        ("*.md", "only others fit, such as `b.md`", "beside it: a.jsonl, x"),
        ("none/*.csv", "no file fits", "there is no folder"),
    ],
)
def test_a_pattern_that_fits_nothing_names_what_lies_near(
    pattern: str, what: str, hint: str, tmp_path: Path
) -> None:
    lay(tmp_path, "a.jsonl", "x/c.jsonl", "b.md")
    with pytest.raises(RecipeError, match=what) as refusal:
        find_files(SourceSection(source=str(tmp_path / pattern)))
    assert hint in str(refusal.value.hint)


BIG = 8 * 2**20
"""Bytes of a file; what Python holds of it at a time must be far less."""
FILLED = {
    "a.jsonl": (b'{"text": "%s"}\n' % (b"x" * 985)),
    "a.csv": b"x" * 999 + b"\n",
    "a.txt": b"x" * 985 + b"\n<|endoftext|>\n",
    "b.txt": b"x" * 999 + b"\n",
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", FILLED)
def test_no_file_is_held_whole(
    name: str, packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "DOCUMENT", 2**18)  # the last one has no marks
    line = FILLED[name]
    content = (b"text\n" if name == "a.csv" else b"") + line * (BIG // len(line))
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    source, intake = SourceSection(source=str(path)), Intake("error")
    del content
    tracemalloc.start()
    count = sum(1 for _ in read_rows(source, intake))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count >= 30
    assert peak < BIG / 4


def test_a_long_document_goes_on_as_the_next_one_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "DOCUMENT", 50)
    said = [f"line {number}" for number in range(30)]
    (tmp_path / "a.txt").write_text("\n".join(said))
    rows, _ = read(tmp_path / "a.txt")
    assert len(rows) > 3
    assert [line for row in rows for line in row.values["text"].split("\n")] == said
    for row in rows:
        first = int(row.where.rpartition(":")[2])
        assert row.values["text"].startswith(f"line {first - 1}")


def test_what_must_be_whole_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "WHOLE", 2**20)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[" + b" " * 2**21 + b"]"))
    with pytest.raises(InputError, match="a list of more than 1 MiB") as refusal:
        read(tmp_path / "a.json.gz")
    assert "jq -c" in str(refusal.value.hint)
    monkeypatch.setattr(lines, "LONGEST", 2**20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n" + b" " * 2**22))
    with pytest.raises(InputError, match=r"a\.jsonl\.gz:2: a line of more than 1 MiB"):
        read(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(("levels", "fits"), [(63, True), (64, False)])
def test_a_row_is_so_deep_and_no_deeper(levels: int, fits: bool, tmp_path: Path) -> None:  # noqa: FBT001
    (tmp_path / "a.jsonl").write_text('{"text": ' + "[" * levels + "]" * levels + "}\n")
    rows, intake = read(tmp_path / "a.jsonl")
    assert (len(rows), len(intake.found)) == (int(fits), int(not fits))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "[" * 500}))  # which are only letters
    assert len(read(tmp_path / "b.jsonl")[0]) == 1


def test_latin_1_has_a_hint(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\ncaf\xe9\n")
    _, intake = read(tmp_path / "a.csv")
    with pytest.raises(InputError) as refusal:
        intake.settle("training")
    assert "iconv -f latin1" in str(refusal.value.hint)
