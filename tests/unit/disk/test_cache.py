"""Entries go by age and only as far as needed, nothing else ever goes, and failing is no error."""

import os
import shutil
import time
from pathlib import Path

import pytest

from peftkit.disk import cache

KIB = 1024
DAY = 24 * 3600


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that may hold 10 KiB."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PEFTKIT_CACHE_GIB", str(10 * KIB / 2**30))
    return tmp_path / "cache"


def digest(number: int) -> str:
    return f"{number:064x}"


def put(folder: Path, age: float, size: int = 3 * KIB) -> Path:
    """A folder with one file of `size`, both last touched `age` seconds ago."""
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "content").write_bytes(b"x" * size)
    then = time.time() - age
    for path in (folder / "below" / "content", folder / "below", folder):
        os.utime(path, (then, then))
    return folder


def entry(number: int, age: float, size: int = 3 * KIB) -> Path:
    return put(cache.entry_folder("kind", digest(number)), age, size)


def test_the_folder_is_the_named_one_or_the_user_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("PEFTKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "peftkit"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache.cache_root() == tmp_path / ".cache" / "peftkit"


@pytest.mark.parametrize("named", ["~no-such-user-here/cache", "/dev/null/cache"])
def test_without_a_home_nothing_is_kept(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", named)
    assert not cache.entry_folder("kind", digest(1)).exists()
    assert cache.cache_bytes() == 0
    assert not cache.make_room(1)


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        *(("0", 0), ("-1", 0), ("0.5", 2**29), ("7", 7 * 2**30)),
        *(("", 20 * 2**30), ("much", 20 * 2**30), ("nan", 20 * 2**30), ("inf", 2**60)),
    ],
)
def test_the_limit_is_what_is_said(said: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE_GIB", said)
    assert cache.cache_limit() == limit


@pytest.mark.parametrize(
    "name", ["", "abc", "../" + "0" * 61, "A" * 64, "0" * 64 + ".tmp-" + "0" * 8]
)
def test_an_entry_is_named_by_a_digest(name: str) -> None:
    with pytest.raises(ValueError, match="expected a sha256"):
        cache.entry_folder("kind", name)


def test_the_longest_unused_go_until_there_is_room() -> None:
    oldest, older, newer = (entry(number, age) for number, age in ((3, 30), (1, 20), (2, 10)))
    assert cache.cache_bytes() == 9 * KIB
    assert cache.make_room(KIB)
    assert oldest.exists()
    assert cache.make_room(2 * KIB)
    assert [oldest.exists(), older.exists(), newer.exists()] == [False, True, True]
    assert cache.make_room(10 * KIB)
    assert cache.cache_bytes() == 0
    assert list(oldest.parent.iterdir()) == []


def test_what_was_of_use_stays_longer() -> None:
    first, second = entry(1, 30), entry(2, 20)
    cache.mark_used(first)
    assert cache.make_room(7 * KIB)
    assert [first.exists(), second.exists()] == [True, False]
    cache.mark_used(second)  # no error, though it is gone
    assert not second.exists()


@pytest.mark.parametrize("needed", [10 * KIB + 1, 2**60])
def test_nothing_goes_for_what_never_fits(needed: int) -> None:
    kept = entry(1, 30)
    assert not cache.make_room(needed)
    assert kept.exists()


def test_a_full_disk_is_room_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = entry(1, 30)
    usage = shutil.disk_usage(kept)._replace(free=KIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert not cache.make_room(3 * KIB)  # removing the entry would leave 1 KiB to the run
    assert kept.exists()
    assert cache.make_room(2 * KIB)
    assert not kept.exists()


def test_a_limit_of_nothing_keeps_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = entry(1, 30)
    monkeypatch.setenv("PEFTKIT_CACHE_GIB", "0")
    assert not cache.make_room(0)
    assert kept.exists()


def test_what_is_no_entry_is_never_removed(root: Path, tmp_path: Path) -> None:
    """The folder may be one's home, and an entry a link to something dear."""
    dear = [put(root / "documents" / name, 99) for name in ("letters", "ab12", digest(1)[:40])]
    linked = put(tmp_path / "elsewhere", 99)
    (root / "kind").mkdir()
    (root / "kind" / digest(5)).symlink_to(linked)
    (root / "kind" / digest(6)).write_bytes(b"x" * 9 * KIB)
    assert cache.cache_bytes() == 0
    gone = entry(2, 1)
    assert cache.make_room(10 * KIB)
    assert not gone.exists()
    assert all((folder / "below" / "content").exists() for folder in (*dear, linked))
    assert (root / "kind" / digest(6)).exists()


def test_what_another_process_builds_is_counted_and_left(root: Path) -> None:
    building = put(root / "kind" / f"{digest(1)}.tmp-0123abcd", age=2 * DAY)
    os.utime(building / "below" / "content")  # still being filled
    assert cache.cache_bytes() == 3 * KIB
    assert not cache.make_room(8 * KIB)
    assert building.exists()
    then = time.time() - DAY / 2  # longer ago than the entry that has to go
    os.utime(building / "below" / "content", (then, then))
    gone = entry(2, 1)
    assert cache.make_room(7 * KIB)
    assert [building.exists(), gone.exists()] == [True, False]


def test_what_a_killed_process_left_goes(root: Path) -> None:
    left = put(root / "kind" / f"{digest(1)}.tmp-0123abcd", age=2 * DAY)
    kept = entry(2, 1)
    assert cache.make_room(5 * KIB)
    assert [left.exists(), kept.exists()] == [False, True]


def test_what_cannot_be_removed_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    entry(1, 30)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "rename", refuse)
    assert not cache.make_room(8 * KIB)
    assert cache.make_room(7 * KIB)


def test_a_folder_that_nobody_may_write_is_no_room(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != root.parent)
    assert not cache.make_room(1)  # what is there is the folder above
    root.mkdir()
    assert cache.make_room(1)
