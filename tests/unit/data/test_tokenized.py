"""The second read of the same bytes encodes nothing and is the first one; no cache is an error."""

import csv
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from huggingface_hub import constants
from transformers import BatchEncoding

from peftkit.data import tokenized
from peftkit.data.arrow import SCHEMA, ArrowExamples
from peftkit.data.batch import collate
from peftkit.data.draft import Encoder, Reading
from peftkit.data.example import Example
from peftkit.data.formats import READERS as FORMATS
from peftkit.data.prepare import Dataset, read_set
from peftkit.data.readers import READERS
from peftkit.data.tokenized import EXAMPLES, MANIFEST, Tokenized, load, read_source
from peftkit.disk.digest import sha256_of
from peftkit.errors import InputError
from peftkit.recipe.sections.data import SourceSection

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that takes small sources too."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenized, "SMALLEST", 1)
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def forbid_encoding(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on, whoever encodes a text fails."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was encoded")

    return lambda: monkeypatch.setattr(type(tokenizer), "__call__", refuse)


@pytest.fixture
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), 64, "error")


def write(path: Path, rows: Rows) -> SourceSection:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SourceSection(source=str(path))


def turns(*said: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]}


def read_without(source: SourceSection, bad_rows: str, encoder: Encoder) -> Tokenized:
    """What is built where nothing may be kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTKIT_CACHE_GIB", "0")
        return read_source(source, bad_rows, encoder)


def entries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.is_dir() else []


def assert_same(found: Tokenized, wanted: Tokenized) -> None:
    assert (found.skipped, found.dropped) == (wanted.skipped, wanted.dropped)
    assert found.blank == wanted.blank
    assert type(found.skipped) is type(wanted.skipped)
    for one, other in zip(found.examples, wanted.examples, strict=True):
        for field in fields(Example):
            left, right = getattr(one, field.name), getattr(other, field.name)
            assert type(left) is type(right)
            if isinstance(left, np.ndarray):
                assert (left.dtype, left.shape) == (right.dtype, right.shape)
                assert left.tobytes() == right.tobytes()
            else:
                assert left == right


ROWS: dict[str, Rows] = {
    "chat": [turns("hi", "hello ü"), turns("a", "b", "c", "d"), turns("q", "🙂")],
    "instruction": [
        {"instruction": "double", "input": "4", "output": "8"},
        {"instruction": "say it", "input": None, "output": " yes "},
    ],
    "completion": [{"prompt": "one ", "completion": "two"}, {"prompt": "", "completion": "x"}],
    "tokenized": [{"input_ids": [7, 8, 9, 2]}, {"input_ids": [7, 8], "labels": [-100, 8]}],
    "text": [{"text": "plain words"}, {"text": "long " * 40}, {"text": "tail"}],
}


@pytest.mark.parametrize("given", [*ROWS, "auto"])
def test_every_format_comes_back_as_it_was_built(
    given: str, tmp_path: Path, encoder: Encoder, cache: Path, forbid_encoding: Callable[[], None]
) -> None:
    assert set(ROWS) == set(FORMATS["causal-lm"])
    rows = [row for kind, kinds in ROWS.items() if given in (kind, "auto") for row in kinds]
    source = write(tmp_path / "a.jsonl", rows).model_copy(update={"format": given})
    wanted = read_without(source, "error", encoder)
    assert entries(cache) == []
    assert_same(read_source(source, "error", encoder), wanted)
    assert [sorted(path.name for path in entry.iterdir()) for entry in entries(cache)] == [
        [MANIFEST, EXAMPLES]
    ]
    forbid_encoding()
    found = read_source(source, "error", encoder)
    assert_same(found, wanted)
    assert len(found.examples) >= len(rows)
    batch, same = collate([found.examples], 0), collate([wanted.examples], 0)
    assert batch.inputs.equal(same.inputs)
    assert batch.targets.equal(same.targets)


@pytest.mark.parametrize("too_long", ["error", "drop", "truncate"])
def test_rows_that_are_not_taken_come_back_too(
    too_long: str,
    tmp_path: Path,
    encoder: Encoder,
    cache: Path,
    forbid_encoding: Callable[[], None],
) -> None:
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": ""},
        {"prompt": "long", "completion": "x" * 90},
        {"prompt": "y" * 90, "completion": "cut off"},
        {"prompt": "a", "\ud800": "half a character in a message"},
    ]
    source = write(tmp_path / "a.jsonl", rows)
    encoder = replace(encoder, too_long=too_long)
    wanted = read_without(source, "skip", encoder)
    assert_same(read_source(source, "skip", encoder), wanted)
    assert len(entries(cache)) == 1
    forbid_encoding()
    assert_same(read_source(source, "skip", encoder), wanted)
    expected = {"error": (4, 0, 1), "drop": (2, 2, 1), "truncate": (3, 0, 2)}[too_long]
    assert (len(wanted.skipped), wanted.dropped, len(wanted.examples)) == expected
    assert any(example.cut for example in wanted.examples) == (too_long == "truncate")


def test_a_source_of_no_usable_row_is_kept_as_well(
    tmp_path: Path, encoder: Encoder, cache: Path, forbid_encoding: Callable[[], None]
) -> None:
    source = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": ""}])
    wanted = read_source(source, "skip", encoder)
    assert (len(wanted.examples), len(wanted.skipped), len(entries(cache))) == (0, 1, 1)
    forbid_encoding()
    assert_same(read_source(source, "skip", encoder), wanted)


def write_table(path: Path, rows: Rows) -> None:
    """The rows as the kind of file that `path` names."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        write(path, rows)
    elif path.suffix == ".txt":
        path.write_text("\n<|endoftext|>\n".join(row["text"] for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, ["text"], delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)


def test_every_kind_of_file_and_a_folder_of_them(
    tmp_path: Path, encoder: Encoder, cache: Path, forbid_encoding: Callable[[], None]
) -> None:
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    for number, kind in enumerate(sorted(READERS)):
        write_table(
            folder / "below" / f"{number}{kind}", [{"text": f"{kind} one"}, {"text": "two"}]
        )
    paths = [folder, *(folder / "below").iterdir()]
    sources = [SourceSection(source=str(path)) for path in paths]
    wanted = [read_without(source, "error", encoder) for source in sources]
    for source, built in zip(sources, wanted, strict=True):
        assert_same(read_source(source, "error", encoder), built)
    assert len(entries(cache)) == len(READERS) + 1
    forbid_encoding()
    for source, built in zip(sources, wanted, strict=True):
        assert_same(read_source(source, "error", encoder), built)
    assert len(wanted[0].examples) == 2 * len(READERS)


def test_a_source_of_a_hub_is_kept_as_its_files_are(
    encoder: Encoder,
    cache: Path,
    forbid_encoding: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(constants.HF_HUB_CACHE) / "datasets--org--kept"
    (folder / "snapshots" / "0123abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc")
    write(folder / "snapshots" / "0123abc" / "train.jsonl", ROWS["text"])
    source = SourceSection(source="hub:org/kept")
    asked: list[object] = []
    plain = huggingface_hub.snapshot_download

    def ask(*given: Any, **named: Any) -> str:
        asked.append(given)
        return plain(*given, **named)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", ask)
    wanted = read_source(source, "error", encoder)
    assert (len(entries(cache)), len(asked)) == (1, 1)  # the hub is far away
    forbid_encoding()
    assert_same(read_source(source, "error", encoder), wanted)
    assert {example.source for example in wanted.examples} == {"hub:org/kept"}


def test_a_limit_of_nothing_looks_nothing_up(
    tmp_path: Path, encoder: Encoder, forbid_encoding: Callable[[], None]
) -> None:
    source = write(tmp_path / "a.jsonl", ROWS["text"])
    read_source(source, "error", encoder)
    forbid_encoding()
    read_source(source, "error", encoder)
    with pytest.raises(pytest.fail.Exception, match="something was encoded"):
        read_without(source, "error", encoder)


def test_a_changed_byte_is_read_anew(tmp_path: Path, encoder: Encoder, cache: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "one"}])
    read_source(source, "error", encoder)
    stamp = (tmp_path / "a.jsonl").stat()
    write(tmp_path / "a.jsonl", [{"text": "onE"}])
    os.utime(tmp_path / "a.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert [example.text for example in read_source(source, "error", encoder).examples] == ["onE"]
    assert len(entries(cache)) == 2


def test_a_moved_source_is_not_encoded_again(
    tmp_path: Path, encoder: Encoder, forbid_encoding: Callable[[], None]
) -> None:
    wanted = read_source(write(tmp_path / "a.jsonl", ROWS["text"]), "error", encoder)
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "a.jsonl").rename(tmp_path / "elsewhere" / "a.jsonl")
    forbid_encoding()
    assert_same(read_source(SourceSection(source=str(moved)), "error", encoder), wanted)


def test_refused_rows_are_refused_every_time(tmp_path: Path, encoder: Encoder, cache: Path) -> None:
    good = write(tmp_path / "good.jsonl", [{"text": "fine"}])
    bad = write(tmp_path / "bad.jsonl", [{"text": "fine"}, {"text": ""}])
    problems = []
    for _ in range(2):
        with pytest.raises(InputError, match="2 bad rows in the training data") as refusal:
            read_set("training", [bad, good, bad], "error", encoder)
        problems.append((refusal.value.problems, refusal.value.hint))
        assert len(entries(cache)) == 1  # the good one
    assert problems[0] == problems[1]
    assert problems[0][0] == ("bad.jsonl:2: column `text` is empty",) * 2


def test_a_set_is_what_its_sources_are_in_their_order(
    tmp_path: Path, encoder: Encoder, forbid_encoding: Callable[[], None]
) -> None:
    long = {"prompt": "a", "completion": "x" * 99}
    sources = [
        write(tmp_path / "b.jsonl", [*ROWS["completion"], long, {"text": " "}]),
        write(tmp_path / "a.jsonl", [{"text": "one"}, long, {"text": ""}]),
    ]
    encoder = replace(encoder, too_long="drop")
    built = read_set("training", sources, "skip", encoder)
    forbid_encoding()
    found = read_set("training", sources, "skip", encoder)
    assert (found.digest, found.facts) == (built.digest, built.facts)
    assert found.dropped == 2
    assert [bad.where for bad in found.skipped] == ["b.jsonl:4", "a.jsonl:3"]
    assert [example.where for example in found.examples] == ["b.jsonl:1", "b.jsonl:2", "a.jsonl:1"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def seal(entry: Path) -> None:
    """Write the manifest that fits the file that is there."""
    path = entry / EXAMPLES
    told = json.loads((entry / MANIFEST).read_text())
    told[EXAMPLES] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (entry / MANIFEST).write_text(json.dumps(told))


def put_text(entry: Path) -> None:
    (entry / EXAMPLES).write_text("not arrow")
    seal(entry)


def put_other_columns(entry: Path) -> None:
    table = pa.table({"tokens": [1]})
    with pa.ipc.new_file(str(entry / EXAMPLES), table.schema) as writer:
        writer.write_table(table)
    seal(entry)


def put_half_told(entry: Path) -> None:
    with pa.ipc.new_file(str(entry / EXAMPLES), SCHEMA):
        pass
    seal(entry)
    told = json.loads((entry / MANIFEST).read_text())
    (entry / MANIFEST).write_text(json.dumps({EXAMPLES: told[EXAMPLES]}))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": lambda entry: flip(entry / EXAMPLES),
    "cut short": lambda entry: os.truncate(entry / EXAMPLES, 500),
    "an empty file": lambda entry: os.truncate(entry / EXAMPLES, 0),
    "no file": lambda entry: (entry / EXAMPLES).unlink(),
    "no manifest": lambda entry: (entry / MANIFEST).unlink(),
    "an empty manifest": lambda entry: os.truncate(entry / MANIFEST, 0),
    "a manifest of bytes": lambda entry: (entry / MANIFEST).write_bytes(b"\xff\xfe"),
    "a manifest of something": lambda entry: (entry / MANIFEST).write_text("[1, null]"),
    "no arrow inside": put_text,
    "other columns": put_other_columns,
    "half told": put_half_told,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_again(
    damage: Callable[[Path], Any],
    tmp_path: Path,
    encoder: Encoder,
    cache: Path,
    forbid_encoding: Callable[[], None],
) -> None:
    source = write(tmp_path / "a.jsonl", ROWS["text"])
    wanted = read_without(source, "error", encoder)  # whose file nobody damages
    read_source(source, "error", encoder)
    entry = entries(cache)[0]
    assert load(entry) is not None
    damage(entry)
    assert load(entry) is None
    assert_same(read_source(source, "error", encoder), wanted)
    assert entries(cache) == [entry]
    forbid_encoding()
    assert_same(read_source(source, "error", encoder), wanted)


def no_folder(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    patch.setenv("PEFTKIT_CACHE", str(tmp_path / "file" / "cache"))


def no_home(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PEFTKIT_CACHE", "~no-such-user-here")


def no_right(_: Path, patch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    patch.setattr(Path, "mkdir", refuse)


def no_disk(_: Path, patch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", fsync)


def no_limit_left(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PEFTKIT_CACHE_GIB", "1e-9")


@pytest.mark.parametrize("hinder", [no_folder, no_home, no_right, no_disk, no_limit_left])
def test_where_nothing_can_be_written_the_run_goes_on(
    hinder: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    encoder: Encoder,
    cache: Path,
) -> None:
    source = write(tmp_path / "a.jsonl", ROWS["text"])
    wanted = read_without(source, "error", encoder)
    with pytest.MonkeyPatch.context() as patch:
        hinder(tmp_path, patch)
        assert_same(read_source(source, "error", encoder), wanted)
        assert_same(read_source(source, "error", encoder), wanted)
    assert entries(cache) == []
    read_source(source, "error", encoder)
    assert len(entries(cache)) == 1


def test_text_that_arrow_does_not_take_is_not_kept(
    tmp_path: Path, encoder: Encoder, cache: Path
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", [{"text": "one"}])
    named = Path(os.fsdecode(b"\xff.jsonl"))  # which is no UTF-8
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / named)
    source = SourceSection(source=str(tmp_path / "data"))
    wanted = read_without(source, "error", encoder)
    assert wanted.examples[0].where == "\udcff.jsonl:1"
    assert_same(read_source(source, "error", encoder), wanted)
    assert entries(cache) == []


def test_a_small_source_is_not_kept(
    tmp_path: Path, encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "one"}])
    size = (tmp_path / "a.jsonl").stat().st_size
    monkeypatch.setattr(tokenized, "SMALLEST", size + 1)
    read_source(source, "error", encoder)
    assert not cache.exists()
    monkeypatch.setattr(tokenized, "SMALLEST", size)
    read_source(source, "error", encoder)
    assert len(entries(cache)) == 1


def test_a_tokenizer_that_cannot_be_told_is_used_without(tmp_path: Path, cache: Path) -> None:
    class Spelling:
        """One token a byte, in Python only."""

        eos_token_id = 0
        unk_token_id = None
        chat_template = None
        added_tokens_decoder: ClassVar[dict[int, object]] = {}

        def __call__(self, texts: list[str], **_: object) -> BatchEncoding:
            return BatchEncoding({"input_ids": [list(text.encode()) for text in texts]})

    source = write(tmp_path / "a.jsonl", [{"text": "ab"}])
    found = read_source(source, "error", Encoder(Spelling(), frozenset({0}), 64, "error"))
    assert found.examples[0].tokens.tolist() == [97, 98, 0]
    assert not cache.exists()


TELLER = """
import time
for text, pause in (("one", 5), ("two", 0)):  # the second only for who wrongly asks again
    with open("a.jsonl", "w") as pipe:
        pipe.write('{"text": "%s"}\\n' % text)
    time.sleep(pause)
"""


def test_a_pipe_is_read_once(tmp_path: Path, encoder: Encoder, cache: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    teller = subprocess.Popen([sys.executable, "-c", TELLER], cwd=tmp_path)
    source = SourceSection(source=str(tmp_path / "a.jsonl"))
    found = read_source(source, "error", encoder)
    teller.kill()
    teller.wait()
    assert [example.text for example in found.examples] == ["one"]
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, tokenizer: Any, encoder: Encoder, cache: Path
) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "one"}])
    plain = type(tokenizer).__call__

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if (tmp_path / "a.jsonl").stat().st_size < 50:
            with (tmp_path / "a.jsonl").open("a") as file:
                file.write('{"text": "two"}\n')
        return plain(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tokenizer), "__call__", call)
        read_source(source, "error", encoder)
    assert entries(cache) == []
    read_source(source, "error", encoder)
    assert len(entries(cache)) == 1


def test_an_entry_that_is_used_stays(
    tmp_path: Path, encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [write(tmp_path / f"{name}.jsonl", [{"text": name * 600}]) for name in "abc"]
    used = []
    for number, source in enumerate(sources[:2]):
        read_source(source, "error", encoder)
        used += [entry for entry in entries(cache) if entry not in used]
        os.utime(used[number], (number, number))
    read_source(sources[0], "error", encoder)
    taken = sum(path.stat().st_size for entry in used for path in entry.iterdir())
    monkeypatch.setenv("PEFTKIT_CACHE_GIB", str((taken + 100) / 2**30))
    read_source(sources[2], "error", encoder)
    assert [entry.exists() for entry in used] == [True, False]


SHARER = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from peftkit.data import tokenized
from peftkit.data.draft import Encoder, Reading
from peftkit.data.prepare import Dataset
from peftkit.recipe.sections.data import SourceSection

tokenized.SMALLEST = 1
folder, source = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
encoder = Encoder(tokenizer, frozenset({2}), 64, "error", reading=Reading(fresh=True))
print("ready", flush=True)
for line in sys.stdin:
    found = tokenized.read_source(SourceSection(source=source), "error", encoder)
    held = type(found.examples).__name__
    print(len(found.examples), held, Dataset(found.examples).digest, flush=True)
"""


@pytest.fixture
def sharers(cache: Path, tiny_llama: Path, tmp_path: Path) -> Iterator[list[Any]]:
    """Two processes that build the entry of `a.jsonl` anew for each line of input."""
    del cache  # theirs too
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [sys.executable, "-c", SHARER, str(tiny_llama), str(tmp_path / "a.jsonl")]
    started: list[Any] = [subprocess.Popen(words, **pipes) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def ask(process: Any, times: int = 1) -> None:
    process.stdin.write("\n" * times)
    process.stdin.flush()


@pytest.mark.slow
def test_two_processes_may_build_the_same_entry_at_once(
    sharers: list[Any], tmp_path: Path, encoder: Encoder, cache: Path
) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": f"row {number}"} for number in range(300)])
    assert [process.stdout.readline() for process in sharers] == ["ready\n"] * 2
    for process in sharers:
        ask(process, 15)
    ends = {process.stdout.readline() for _ in range(15) for process in sharers}
    wanted = read_without(source, "error", encoder)
    # Whoever comes second may find its own not kept, and holds the rows in memory.
    said = [f"300 {kind} {Dataset(wanted.examples).digest}\n" for kind in ("ArrowExamples", "list")]
    assert said[0] in ends
    assert ends <= set(said)
    assert len(entries(cache)) == 1  # and nothing unfinished is left
    assert_same(read_source(source, "error", encoder), wanted)


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_disturbs_no_other(
    sharers: list[Any], tmp_path: Path, encoder: Encoder, cache: Path
) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": f"row {number}"} for number in range(9000)])
    assert [process.stdout.readline() for process in sharers] == ["ready\n"] * 2
    first, second = sharers
    ask(first)
    while not any(path.stat().st_size for path in cache.glob(f"*.tmp-*/{EXAMPLES}")):
        assert first.poll() is None
    first.kill()
    first.wait()
    left = entries(cache)
    assert [".tmp-" in entry.name for entry in left] == [True]
    ask(second)
    assert second.stdout.readline().startswith("9000 ArrowExamples")
    (entry,) = (each for each in entries(cache) if each not in left)
    assert load(entry) is not None
    assert len(read_source(source, "error", encoder).examples) == 9000


def test_fresh_data_is_made_anew_and_kept(
    tmp_path: Path, encoder: Encoder, cache: Path, forbid_encoding: Callable[[], None]
) -> None:
    source = write(tmp_path / "a.jsonl", ROWS["text"])
    wanted = read_source(source, "error", encoder)
    (entry,) = entries(cache)
    before = (entry / MANIFEST).stat().st_ino
    fresh = replace(encoder, reading=Reading(fresh=True))
    assert_same(read_source(source, "error", fresh), wanted)
    assert entries(cache) == [entry]
    assert (entry / MANIFEST).stat().st_ino != before
    forbid_encoding()
    assert_same(read_source(source, "error", encoder), wanted)
    with pytest.raises(pytest.fail.Exception, match="something was encoded"):
        read_source(source, "error", fresh)


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceSection:
    """More rows than memory is to hold, with no cache."""
    monkeypatch.setenv("PEFTKIT_CACHE_GIB", "0")
    monkeypatch.setattr(tokenized, "FEW_ROWS", 5)
    return write(tmp_path / "a.jsonl", [{"text": f"row {number}"} for number in range(40)])


def test_many_rows_without_a_cache_go_into_a_file_without_a_name(
    many: SourceSection, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    found = read_source(many, "error", encoder)
    assert isinstance(found.examples, ArrowExamples)
    assert list((tmp_path / "spare").iterdir()) == []
    monkeypatch.setattr(tokenized, "FEW_ROWS", 50)
    wanted = read_source(many, "error", encoder)
    assert isinstance(wanted.examples, list)
    assert_same(found, wanted)


def test_many_tokens_go_there_too(
    many: SourceSection, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenized, "FEW_ROWS", 50)
    monkeypatch.setattr(tokenized, "FEW_TOKENS", 20)
    assert isinstance(read_source(many, "error", encoder).examples, ArrowExamples)


def test_where_no_file_can_be_made_memory_holds_them_and_it_is_said(
    many: SourceSection,
    tmp_path: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    found = read_source(many, "error", encoder)
    assert isinstance(found.examples, list)
    assert len(found.examples) == 40
    assert "the rows of `a.jsonl` stay in memory" in caplog.text


def test_bad_rows_of_many_are_all_found(many: SourceSection, encoder: Encoder) -> None:
    path = Path(many.source)
    path.write_text(path.read_text() + "}\n" * 30)
    assert len(read_source(many, "error", encoder).skipped) == 30
    found = read_source(many, "skip", encoder)
    assert (len(found.examples), len(found.skipped)) == (40, 30)
