"""Whatever is done to the files of a checkpoint is seen, and the older one is used."""

import hashlib
import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import Forks, killed_in_step, outcome
from safetensors.torch import load_file, save_file

from peftkit.train.checkpoint import MANIFEST, MOMENTS, STATE, WEIGHTS, newest_checkpoint, seal

pytestmark = pytest.mark.slow
FILES = (WEIGHTS, MOMENTS, STATE, MANIFEST)
Damage = Callable[[Path], object]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


def resign(folder: Path) -> None:
    """Make the manifest agree with whatever the files now hold."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["files"][name] = facts
    (folder / MANIFEST).write_text(seal(manifest))


def poison(path: Path, value: float) -> None:
    """Put a number that is not finite where the manifest vouches for it."""
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].flatten()[1] = value
    save_file(tensors, path)
    resign(path.parent)


def rename_tensor(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"lora_A", b"lora_B", 1))


def damages(checkpoint: Path) -> dict[str, Damage]:
    """Ways to damage each file of a checkpoint, by name; each takes the checkpoint's folder."""
    draw = random.Random(11)
    found: dict[str, Damage] = {
        "an older manifest": lambda folder: shutil.copy(
            folder.with_name("step-000003") / MANIFEST, folder / MANIFEST
        ),
        "a file more": lambda folder: relist(folder, "extra"),
        "a file less": lambda folder: relist(folder, None),
        "empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
        "weights renamed inside": lambda folder: rename_tensor(folder / WEIGHTS),
        "another step": lambda folder: restep(folder, 5),
    }
    for name in FILES:
        size = (checkpoint / name).stat().st_size
        whole: dict[str, Callable[[Path], object]] = {
            "empty": lambda path: path.write_bytes(b""),
            "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
            "a byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "a byte long": lambda path: path.write_bytes(path.read_bytes() + b" "),
            "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
            "last page zeroed": lambda path: path.write_bytes(
                path.read_bytes()[:-512] + bytes(512)
            ),
            "missing": lambda path: path.unlink(),
            "a folder": lambda path: (path.unlink(), path.mkdir()),
            "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
            "nested brackets": lambda path: path.write_bytes(b"[" * 100_000),
            "not text": lambda path: path.write_bytes(b"\xff\xfe" * 100),
        }
        for what, damage in whole.items():
            found[f"{name}: {what}"] = on(name, damage)
        if name != MANIFEST:
            found[f"{name}: of the older one"] = lambda folder, name=name: shutil.copy(
                folder.with_name("step-000003") / name, folder / name
            )
        header = [draw.randrange(8 * min(size, 600)) for _ in range(12)]
        for bit in [*header, *(draw.randrange(8 * size) for _ in range(38))]:
            found[f"{name}: bit {bit}"] = on(name, lambda path, bit=bit: flip(path, bit))
    for name in (WEIGHTS, MOMENTS):
        for value in (float("nan"), float("inf"), -float("inf")):
            found[f"{name}: {value} with a valid manifest"] = on(
                name, lambda path, value=value: poison(path, value)
            )
    return found


def on(name: str, damage: Callable[[Path], object]) -> Damage:
    return lambda folder: damage(folder / name)


def relist(folder: Path, extra: str | None) -> None:
    """A sealed manifest that lists one file more, or one less, than a checkpoint has."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if extra:
        manifest["files"][extra] = manifest["files"][STATE]
    else:
        del manifest["files"][STATE]
    (folder / MANIFEST).write_text(seal(manifest))


def restep(folder: Path, step: int) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(seal({**manifest, "step": step}))


@pytest.fixture(scope="module")
def stopped(forks: Forks, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 6, with checkpoints of steps 3 and 6."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    assert forks.finish(recipe, run, points=[killed_in_step(7)]).code == -signal.SIGKILL
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step-000003",
        "step-000006",
    ]
    return run


def test_each_damage_is_seen_and_the_older_one_used(
    stopped: Path, tmp_path: Path, record_property: Any
) -> None:
    cases = damages(stopped / "checkpoints/step-000006")
    detected, missed = 0, []
    for name, damage in cases.items():
        root = tmp_path / "checkpoints"
        shutil.copytree(stopped / "checkpoints", root)
        damage(root / "step-000006")
        named: list[str] = []
        found = newest_checkpoint(root, named)
        seen = found is not None and found.step == 3 and len(named) == 1
        detected += seen
        missed += [] if seen else [f"{name}: {found} {named}"]
        shutil.rmtree(root)
    record_property("damaged checkpoints", {"cases": len(cases), "detected": detected})
    assert missed == []
    assert detected >= 200


def test_an_undamaged_one_is_used(stopped: Path) -> None:
    """Or all of the above would be seen in any checkpoint at all."""
    named: list[str] = []
    found = newest_checkpoint(stopped / "checkpoints", named)
    assert found is not None
    assert (found.step, named) == (6, [])
    assert all(bool(torch.isfinite(t).all()) for t in load_file(found.folder / WEIGHTS).values())


@pytest.mark.parametrize(
    "count", [pytest.param(3), pytest.param(20, marks=pytest.mark.faults)], ids=["few", "many"]
)
def test_a_run_goes_on_from_the_older_one_and_ends_the_same(
    forks: Forks,
    recipe: Path,
    whole: Path,
    stopped: Path,
    tmp_path: Path,
    count: int,
    record_property: Any,
) -> None:
    cases = sorted(damages(stopped / "checkpoints/step-000006").items())
    chosen = random.Random(count).sample(cases, count)
    identical = 0
    for number, (name, damage) in enumerate(chosen):
        run = tmp_path / str(number)
        shutil.copytree(stopped, run)
        damage(run / "checkpoints/step-000006")
        done = forks.finish(recipe, run)
        assert done.code == 0, (name, done.told)
        assert "skipped a damaged checkpoint: step-000006: " in done.told
        assert "going on from step 3 of 12" in done.told
        identical += outcome(run) == outcome(whole)
    record_property("runs with a damaged checkpoint", {"runs": count, "identical": identical})
    assert identical == count


def test_with_all_damaged_a_run_begins_again(
    forks: Forks, recipe: Path, whole: Path, stopped: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for folder in (run / "checkpoints").iterdir():
        flip(folder / WEIGHTS, 8 * 500)
    done = forks.finish(recipe, run)
    assert done.code == 0, done.told
    assert done.told.count("skipped a damaged checkpoint") == 2
    assert outcome(run) == outcome(whole)
