"""What is written is whole or absent, as readable as the umask says, and failures are explained."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftkit.disk import durable
from peftkit.errors import WriteError


@pytest.fixture
def umask() -> Iterator[None]:
    """A group may write what its members make."""
    mask = os.umask(0o002)
    yield
    os.umask(mask)


def refuse(number: int) -> object:
    """A disk on which nothing reaches the platter."""

    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_says_need_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "metrics.json"
    durable.write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", refuse(number))
    with pytest.raises(WriteError, match=r"; 2 KiB needed, [\d.]+ [KMGT]iB free$") as caught:
        durable.write_whole(path, "x" * 2048)
    assert caught.value.exit_code == 74
    assert "make room" in str(caught.value.hint)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_other_failures_say_what_the_system_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(number))
    said = os.strerror(number).lower()
    with pytest.raises(WriteError, match=f"cannot write `.*metrics.json`: {said}") as caught:
        durable.write_whole(tmp_path / "metrics.json", "new")
    assert "--out DIR" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_another_whole(tmp_path: Path) -> None:
    final = tmp_path / "adapter"
    for number in (1, 2):
        with durable.whole_folder(final, 0) as building:
            (building / f"{number}.txt").write_text("x")
            assert not (final / f"{number}.txt").exists()
    assert [p.name for p in final.iterdir()] == ["2.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_that_fails_leaves_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "adapter"
    with durable.whole_folder(final, 0) as building:
        (building / "old.txt").write_text("x")
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with (
        pytest.raises(WriteError, match="1 MiB needed"),
        durable.whole_folder(final, 2**20) as building,
    ):
        (building / "new.txt").write_text("x")
    assert [p.name for p in final.iterdir()] == ["old.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_that_cannot_take_its_place_leaves_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one has been moved aside by then, and is put back."""
    final = tmp_path / "adapter"
    with durable.whole_folder(final, 0) as building:
        (building / "old.txt").write_text("x")
    rename = os.rename

    def refuse_the_new(old: Path, new: Path) -> None:
        if (Path(old) / "new.txt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse_the_new)
    with pytest.raises(WriteError), durable.whole_folder(final, 0) as building:
        (building / "new.txt").write_text("x")
    assert [p.name for p in final.iterdir()] == ["old.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.usefixtures("umask")
def test_modes_follow_the_umask(tmp_path: Path) -> None:
    with durable.whole_folder(tmp_path / "adapter", 0) as building:
        (building / "weights").write_text("x")
        (building / "weights").chmod(0o600)  # as safetensors leaves its files
    durable.write_whole(tmp_path / "lock.json", "{}")
    written = (tmp_path / "adapter/weights", tmp_path / "lock.json")
    assert [stat.S_IMODE(path.stat().st_mode) for path in written] == [0o664, 0o664]


def test_free_space_is_known_for_what_is_not_there_yet(tmp_path: Path) -> None:
    found = durable.free_bytes(tmp_path / "not" / "yet" / "there")
    assert found == pytest.approx(durable.free_bytes(tmp_path), rel=0.05)
    assert found > 0
