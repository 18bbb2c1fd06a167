"""The files of a run folder: lines survive a torn last one, and only a run's own files go."""

import json
from pathlib import Path

import pytest

from peftkit.errors import InputError, WriteError
from peftkit.report.record import (
    EVALUATIONS,
    OWN_FILES,
    OWN_FOLDERS,
    PAGES_BYTES,
    STEPS,
    RunFolder,
    check_space,
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.mark.parametrize("torn", ["{", '{"step": 3', '{"step": 3, "loss": 1.5}'])
def test_a_torn_last_line_gives_way_to_the_next(run: RunFolder, torn: str) -> None:
    for step in (1, 2):
        run.append(STEPS, {"step": step})
    with (run.path / STEPS).open("a") as file:
        file.write(torn)
    assert [line["step"] for line in run.lines(STEPS)] == [1, 2]
    run.append(STEPS, {"step": 4})
    assert (run.path / STEPS).read_text() == '{"step": 1}\n{"step": 2}\n{"step": 4}\n'


def test_a_file_of_nothing_but_a_torn_line(run: RunFolder) -> None:
    (run.path / STEPS).write_text('{"st')
    run.append(STEPS, {"step": 1})
    assert run.lines(STEPS) == [{"step": 1}]


@pytest.mark.parametrize("garbage", [b"\0" * 40 + b"\n", b"\xff\xfe\n", b"[1]\n", b"3\n"])
def test_lines_count_up_to_the_first_that_is_none(run: RunFolder, garbage: bytes) -> None:
    """After a power cut, a page of a log may read as zeros."""
    run.append(STEPS, {"step": 1})
    with (run.path / STEPS).open("ab") as file:
        file.write(garbage)
    run.append(STEPS, {"step": 2})
    assert run.lines(STEPS) == [{"step": 1}]


def test_what_will_be_taken_again_is_forgotten(run: RunFolder) -> None:
    for step in range(1, 9):
        run.append(STEPS, {"step": step})
        run.append(EVALUATIONS, {"step": step})
    run.forget_after(5, evaluated=4)
    assert [line["step"] for line in run.lines(STEPS)] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in run.lines(EVALUATIONS)] == [1, 2, 3, 4]


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000])
def test_a_damaged_file_is_named(run: RunFolder, content: str) -> None:
    (run.path / "lock.json").write_text(content)
    with pytest.raises(InputError, match=r"lock\.json` is damaged") as caught:
        run.read("lock.json")
    assert "--fresh" in str(caught.value.hint)


def test_numbers_that_are_not_finite_are_not_written(run: RunFolder) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run.write("metrics.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        run.append(STEPS, {"loss": float("inf")})
    assert list(run.path.iterdir()) == []


def test_clearing_takes_what_a_run_writes_and_nothing_else(run: RunFolder) -> None:
    (run.path / "notes.txt").write_text("mine")
    (run.path / "thesis.tmp-final").write_text("mine")
    for name in OWN_FILES:
        run.write(name, "{}")
    for name in (*OWN_FOLDERS, "adapter.tmp-12345678"):
        (run.path / name).mkdir()
        (run.path / name / "inside").write_text("x")
    (run.path / "lock.json.tmp-12345678").write_text("half")
    run.clear()
    assert sorted(path.name for path in run.path.iterdir()) == ["notes.txt", "thesis.tmp-final"]


def test_it_came_to_its_end_once_all_is_there(run: RunFolder) -> None:
    names = ["metrics.json", "samples.json", "findings.json", "report.html"]
    for missing in names:
        for name in names:
            run.write(name, "{}")
        assert run.finished
        (run.path / missing).unlink()
        assert not run.finished, missing
    run.write("report.html", "a page")
    run.reopen()
    assert not run.finished


def test_space_that_the_run_already_takes_is_not_asked_for_again(run: RunFolder) -> None:
    free = check_room(run, 0)
    (run.checkpoints / "step-000001").mkdir(parents=True)
    (run.checkpoints / "step-000001" / "weights").write_bytes(bytes(3 * 2**20))
    check_space(run, 2**20)
    with pytest.raises(WriteError, match="for checkpoints, adapter and report, and") as caught:
        check_space(run, free + 2**40)
    assert caught.value.exit_code == 74


def check_room(run: RunFolder, needed: int) -> int:
    """The free space, which must be enough for the test itself."""
    from peftkit.disk.durable import free_bytes

    check_space(run, needed)
    assert free_bytes(run.path) > PAGES_BYTES
    return free_bytes(run.path)


def test_tables_are_json_for_people(run: RunFolder) -> None:
    path = run.write("metrics.json", {"loss": 0.5, "name": "é"})
    assert path.read_text() == '{\n  "loss": 0.5,\n  "name": "é"\n}\n'
    assert run.read("metrics.json") == json.loads(path.read_text())
    assert run.read("never.json") is None
