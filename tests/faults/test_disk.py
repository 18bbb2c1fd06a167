"""A full disk ends a run with exit 74, costs nothing that was saved, and room is all it needs."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fault_runs import Forks, at, can_mount, leftovers, outcome, saved

pytestmark = pytest.mark.slow
OFFSETS = 10
SAVE = "peftkit.train.checkpoint:save_checkpoint"
LATER = {
    "a line of the log": ("peftkit.report.record:append", 3),
    "the adapter": ("peftkit.adapters.store:save_adapter", 1),
    "the metrics": ("peftkit.pipeline.conclude:gather_metrics", 1),
    "the report": ("peftkit.report.page:build_page", 1),
    "the card": ("peftkit.report.card:build_card", 1),
}


@dataclass
class SmallDisk:
    """Somewhere that runs out of room: a small file system, or a limit to the size of files."""

    folder: Path
    mounted: bool

    def out_of_room(self, left: int) -> list[object]:
        """What to do to a run that shall find `left` bytes of room."""
        return ["fill", str(self.folder), left] if self.mounted else ["limit", left]

    def make_room(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def clear(self) -> None:
        self.make_room()
        shutil.rmtree(self.folder / "run", ignore_errors=True)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    folder = tmp_path_factory.mktemp("disk")
    mounted = can_mount(folder)
    yield SmallDisk(folder, mounted)
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def disk(small_disk: SmallDisk) -> Iterator[SmallDisk]:
    yield small_disk
    small_disk.clear()


def fill_up(
    forks: Forks, disk: SmallDisk, recipe: Path, place: tuple[str, int], left: int, before: Path
) -> tuple[Any, ...]:
    """How a run ends that ran out of room at a call, said so, and kept what was saved before."""
    run = disk.folder / "run"
    copy = at(*place, do=["copy", str(run), str(before)])
    full = at(*place, do=disk.out_of_room(left))
    done = forks.finish(recipe, run, points=[copy, full])
    assert done.code == 74, done.told
    assert "error: cannot write `" in done.told
    assert " needed, " in done.told
    assert "hint: make room, then give the same command again" in done.told
    assert leftovers(run) == []
    assert saved(run) == saved(before)
    disk.make_room()
    again = forks.finish(recipe, run)
    assert again.code == 0, again.told
    return outcome(run)


@pytest.mark.parametrize(
    "count", [pytest.param(2), pytest.param(OFFSETS, marks=pytest.mark.faults)], ids=["few", "many"]
)
def test_full_in_the_middle_of_a_checkpoint(
    forks: Forks,
    disk: SmallDisk,
    recipe: Path,
    whole: Path,
    tmp_path: Path,
    count: int,
    record_property: Any,
) -> None:
    files = sorted((whole / "checkpoints/step-000012").iterdir())
    if disk.mounted:  # room is given in pages, and each file takes whole ones
        size = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
    else:
        size = max(path.stat().st_size for path in files)
    same = []
    for number in range(count):
        left, before = size * number // count, tmp_path / str(number)
        ended = fill_up(forks, disk, recipe, (SAVE, 2), left, before)
        same.append(ended == outcome(whole))
        disk.clear()
    what = "small file system" if disk.mounted else "limit to the size of files"
    record_property(f"disk full in a checkpoint, {what}", {"cases": count, "identical": sum(same)})
    assert all(same)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(name, marks=() if name == "the adapter" else pytest.mark.faults)
        for name in LATER
    ],
)
def test_full_anywhere_else(
    forks: Forks,
    disk: SmallDisk,
    recipe: Path,
    whole: Path,
    tmp_path: Path,
    what: str,
    record_property: Any,
) -> None:
    ended = fill_up(forks, disk, recipe, LATER[what], 0, tmp_path / "before")
    same = ended == outcome(whole)
    record_property(f"disk full at {what}", {"identical": int(same)})
    assert same


def test_a_limit_to_the_size_of_files(
    forks: Forks, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """As a quota does, it stops one file and leaves room for others."""
    run = tmp_path / "run"
    point = at(SAVE, 2, do=["limit", 20_000])
    done = forks.finish(recipe, run, points=[point])
    assert done.code == 74, done.told
    assert "file too large; " in done.told
    assert leftovers(run) == []
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000003"]
    again = forks.finish(recipe, run)
    assert again.code == 0, again.told
    assert outcome(run) == outcome(whole)


def test_too_little_room_is_said_before_the_model_is_loaded(
    forks: Forks, disk: SmallDisk, recipe: Path
) -> None:
    if not disk.mounted:
        pytest.skip("only root may mount a small file system")
    points = [
        at("peftkit.pipeline.plan:make_plan", do=disk.out_of_room(2**20)),
        at("peftkit.base.load:load_base", do=["exit", 99]),
    ]
    done = forks.finish(recipe, disk.folder / "run", points=points)
    assert done.code == 74, done.told
    assert "MiB for checkpoints, adapter and report, and 1 MiB are free" in done.told


def test_a_disk_that_cannot_be_written(forks: Forks, disk: SmallDisk, recipe: Path) -> None:
    if not disk.mounted:
        pytest.skip("only root may mount a file system read-only")
    remount = ["mount", "-o", "remount,ro", str(disk.folder)]
    subprocess.run(remount, check=True)
    done = forks.finish(recipe, disk.folder / "run")
    subprocess.run([*remount[:2], "remount,rw", remount[3]], check=True)
    assert done.code == 74, done.told
    assert "read-only file system" in done.told
    assert "hint: make it writable" in done.told
