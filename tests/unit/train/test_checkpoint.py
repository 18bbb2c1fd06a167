"""Checkpoints are whole or unseen: what is damaged is found, and an older one serves."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import Parameter

from peftkit.errors import RecipeError, RunError, WriteError
from peftkit.train.checkpoint import (
    AVERAGE,
    MANIFEST,
    MOMENTS,
    STATE,
    WEIGHTS,
    check_fit,
    checkpoint_of,
    find_damage,
    newest_checkpoint,
    read_average,
    read_state,
    restore,
    rotate,
    save_checkpoint,
    seal,
)
from peftkit.train.optimizer import make_optimizer, read_moments

Parameters = dict[str, Parameter]


def make_parameters(seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": Parameter(torch.randn(4, 3, generator=generator)),
        "b.bias": Parameter(torch.randn(5, generator=generator)),
    }


def take_steps(parameters: Parameters, optimizer: torch.optim.Optimizer, count: int) -> None:
    for number in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (number + 1)
        for place, parameter in enumerate(parameters.values()):
            assert parameter.grad is not None  # a place in the flat gradients, to be filled
            parameter.grad.fill_(0.1 * (place + number + 1))
        optimizer.step()


def save_some(root: Path, steps: tuple[int, ...] = (10, 20), keep: int = 3) -> Parameters:
    parameters = make_parameters(0)
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    for step in steps:
        take_steps(parameters, optimizer, 2)
        save_checkpoint(root, step, parameters, optimizer, digests={"recipe": "r"}, keep=keep)
    return parameters


def test_restoring_continues_bit_for_bit(tmp_path: Path) -> None:
    parameters = make_parameters(0)
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    take_steps(parameters, optimizer, 3)
    save_checkpoint(tmp_path, 3, parameters, optimizer, digests={}, keep=2)
    take_steps(parameters, optimizer, 4)

    again = make_parameters(99)
    other = make_optimizer(again, weight_decay=0.1)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 3
    restore(checkpoint, again, other)
    take_steps(again, other, 4)
    for name, parameter in parameters.items():
        assert torch.equal(again[name], parameter), name


def test_forgetting_the_optimizer_would_show(tmp_path: Path) -> None:
    """A negative control: without its moments the continuation is another one."""
    parameters = make_parameters(0)
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    take_steps(parameters, optimizer, 3)
    save_checkpoint(tmp_path, 3, parameters, optimizer, digests={}, keep=2)
    take_steps(parameters, optimizer, 4)
    again = make_parameters(99)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    restore(checkpoint, again, make_optimizer(again, weight_decay=0.1))
    take_steps(again, make_optimizer(again, weight_decay=0.1), 4)
    assert any(not torch.equal(again[name], p) for name, p in parameters.items())


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte long": lambda path: path.write_bytes(path.read_bytes() + b"\n "),
    "first bits": lambda path: flip(path, 0),
    "header bit": lambda path: flip(path, 12),
    "data bit": lambda path: flip(path, path.stat().st_size - 9),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", [WEIGHTS, MOMENTS, STATE, MANIFEST])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    save_some(tmp_path)
    path = tmp_path / "step-000020" / name
    DAMAGES[damage](path)
    named: list[str] = []
    found = newest_checkpoint(tmp_path, named)
    assert found is not None
    assert found.step == 10
    assert len(named) == 1
    assert named[0].startswith("step-000020: ")


def test_numbers_that_are_not_finite_are_damage_even_with_a_valid_digest(tmp_path: Path) -> None:
    save_some(tmp_path)
    folder = tmp_path / "step-000020"
    weights = load_file(folder / WEIGHTS)
    weights["a.weight"][0, 0] = float("nan")
    save_file(weights, folder / WEIGHTS)
    manifest = json.loads((folder / MANIFEST).read_text())
    content = (folder / WEIGHTS).read_bytes()
    manifest["files"][WEIGHTS] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / MANIFEST).write_text(seal(manifest))
    assert "not finite" in (find_damage(folder) or "")


def test_old_ones_go_and_leftovers_with_them(tmp_path: Path) -> None:
    (tmp_path / "step-000005.tmp-dead").mkdir()
    save_some(tmp_path, steps=(10, 20, 30, 40), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000030", "step-000040"]


def test_the_last_whole_one_is_never_rotated_away(tmp_path: Path) -> None:
    """Newer but damaged checkpoints must not push out the only one that can be used."""
    save_some(tmp_path, steps=(10, 20, 30), keep=3)
    for step in (20, 30):
        (tmp_path / f"step-0000{step}" / WEIGHTS).write_bytes(b"")
    rotate(tmp_path, keep=1)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10


def test_spared_saves_outlive_newer_ones(tmp_path: Path) -> None:
    save_some(tmp_path, steps=(10, 20, 30, 40), keep=9)
    rotate(tmp_path, keep=1, spare={20})
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-000020", "step-000040"]


def test_an_average_is_kept_checked_and_read(tmp_path: Path) -> None:
    parameters = make_parameters(0)
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    mean = {name: 2 * p.detach() for name, p in parameters.items()}
    settings: dict[str, Any] = {"digests": {}, "keep": 9}
    save_checkpoint(tmp_path, 1, parameters, optimizer, **settings)
    save_checkpoint(tmp_path, 2, parameters, optimizer, **settings, average=mean)
    assert read_average(checkpoint_of(tmp_path, 1)) is None
    found = read_average(checkpoint_of(tmp_path, 2))
    assert found is not None
    assert all(torch.equal(found[name], value) for name, value in mean.items())
    path = tmp_path / "step-000002" / AVERAGE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert find_damage(path.parent) == f"{AVERAGE} is not what was written"
    with pytest.raises(RunError, match=f"needed for the weights.*{AVERAGE} is not"):
        checkpoint_of(tmp_path, 2)


def test_a_save_that_cannot_be_written_leaves_the_older_ones(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    parameters = save_some(root, steps=(10,))
    before = {path.name: path.read_bytes() for path in (root / "step-000010").iterdir()}
    shutil.move(root, tmp_path / "aside")
    root.write_text("a file where the folder was")
    with pytest.raises(WriteError, match="cannot write"):
        save_checkpoint(
            root, 20, parameters, make_optimizer(parameters, weight_decay=0), digests={}, keep=2
        )
    aside = {path.name: path.read_bytes() for path in (tmp_path / "aside/step-000010").iterdir()}
    assert aside == before


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    """safetensors writes 0600 whatever the umask, so a colleague could not read a checkpoint."""
    mask = os.umask(0o022)
    try:
        save_some(tmp_path, steps=(10,))
    finally:
        os.umask(mask)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "step-000010").iterdir()}
    assert modes == {0o644}


def test_manifest_says_what_it_is_of(tmp_path: Path) -> None:
    parameters = make_parameters(0)
    optimizer = make_optimizer(parameters, weight_decay=0)
    digests = {"recipe": "r", "base": {"digest": "b"}, "data": {"train": "d"}, "versions": {}}
    save_checkpoint(
        tmp_path, 20, parameters, optimizer, digests=digests, keep=1, about={"recipe": {"seed": 1}}
    )
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.digests == digests
    assert json.loads((checkpoint.folder / MANIFEST).read_text())["digests"] == digests
    assert read_state(checkpoint) == {"step": 20, "recipe": {"seed": 1}}


def test_a_checkpoint_under_another_name_is_damaged(tmp_path: Path) -> None:
    """Else a run would go on at a step that was never taken."""
    save_some(tmp_path)
    (tmp_path / "step-000020").rename(tmp_path / "step-000050")
    named: list[str] = []
    found = newest_checkpoint(tmp_path, named)
    assert found is not None
    assert found.step == 10
    assert named == ["step-000050: MANIFEST.json is of step 20"]


def test_damaged_ones_take_no_place_from_those_that_can_be_used(tmp_path: Path) -> None:
    """A run that went on from step 10 keeps two it could go on from, whatever lies above."""
    save_some(tmp_path, steps=(10, 80, 90), keep=3)
    for step in (80, 90):
        (tmp_path / f"step-0000{step}" / WEIGHTS).write_bytes(b"")
    parameters = make_parameters(0)
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    for step in (20, 30):
        save_checkpoint(tmp_path, step, parameters, optimizer, digests={}, keep=2)
    usable = [p.name for p in sorted(tmp_path.iterdir()) if find_damage(p) is None]
    assert usable == ["step-000020", "step-000030"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["a weight", "a moment"])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, value: float, where: str) -> None:
    save_some(tmp_path, steps=(10,))
    parameters = make_parameters(0)
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    take_steps(parameters, optimizer, 1)
    wrong = parameters["b.bias"]
    moments = read_moments(optimizer, parameters)
    place = wrong.data if where == "a weight" else moments["b.bias:exp_avg_sq"]
    place[3] = value
    with pytest.raises(RunError, match=r"`b\.bias.*` holds numbers that are not finite"):
        save_checkpoint(tmp_path, 20, parameters, optimizer, digests={}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]


def test_a_checkpoint_of_other_parameters_does_not_fit(tmp_path: Path) -> None:
    parameters = save_some(tmp_path)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    check_fit(checkpoint, parameters)
    wider = {**parameters, "a.weight": Parameter(torch.zeros(8, 3))}
    with pytest.raises(RecipeError, match="is of other parameters") as caught:
        check_fit(checkpoint, wider)
    assert caught.value.problems == ("`a.weight`: (4, 3) -> (8, 3)",)
    with pytest.raises(RecipeError) as caught:
        check_fit(checkpoint, {"a.weight": parameters["a.weight"]})
    assert caught.value.problems == ("`b.bias`: (5,) -> not there",)


def test_what_was_restored_does_not_hang_on_the_file(tmp_path: Path) -> None:
    """Older checkpoints are removed while the run goes on."""
    parameters = save_some(tmp_path)
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    restore(checkpoint, parameters, optimizer)
    before = read_moments(optimizer, parameters)["a.weight:exp_avg"].clone()
    for name in (WEIGHTS, MOMENTS):
        (checkpoint.folder / name).write_bytes(bytes(4096))
    assert torch.equal(read_moments(optimizer, parameters)["a.weight:exp_avg"], before)
    assert before.abs().max() > 0
