"""Checkpoints that are whole or absent: safetensors and JSON, a manifest last, then one rename.

Weights, moments and the step are all there is to save: dropout is seeded by (seed, step,
micro-batch), and the learning rate and the rows of an update are pure functions of its number.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from peftkit.adapters.weights_file import write_weights
from peftkit.base.finite import first_not_finite
from peftkit.disk.digest import sha256_of
from peftkit.disk.durable import explained, sync, sync_files, whole_folder
from peftkit.errors import RecipeError, RunError
from peftkit.train.average import put
from peftkit.train.optimizer import read_moments, write_moments

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import torch
    from torch import Tensor
    from torch.nn import Parameter

MANIFEST = "MANIFEST.json"
WEIGHTS = "weights.safetensors"
MOMENTS = "optimizer.safetensors"
STATE = "state.json"
AVERAGE = "average.safetensors"
"""Only where a run keeps an exponential mean of its weights."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One verified checkpoint on disk."""

    folder: Path
    step: int
    digests: Mapping[str, Any]
    """Of what it belongs to, as they were given when it was saved."""


def save_checkpoint(  # noqa: PLR0913 - what a checkpoint is made of, and how long it stays
    root: Path,
    step: int,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    digests: Mapping[str, Any],
    keep: int,
    about: Mapping[str, Any] | None = None,
    average: Mapping[str, Tensor] | None = None,
    spare: Collection[int] = (),
) -> Path:
    """Write `root/step-NNNNNN`, then let older ones go; the last verified one always stays.

    The manifest says with `digests` what run the checkpoint is of; `state.json` may say more
    `about` it. An `average` of the weights is kept beside them. Steps to `spare` stay, however old.

    Raises:
        RunError: a weight or a moment is not finite.
        WriteError: it could not be written; the older ones are untouched.
    """
    final = checkpoint_folder(root, step)
    with whole_folder(final, checkpoint_bytes(parameters)) as building:
        write_weights(parameters, building / WEIGHTS)
        write_weights(read_moments(optimizer, parameters), building / MOMENTS)
        if average is not None:
            write_weights(average, building / AVERAGE)
        state = _as_json({**(about or {}), "step": step})
        (building / STATE).write_text(state, encoding="utf-8")
        sync_files(building)
        manifest = {"step": step, "digests": dict(digests), "files": _describe(building)}
        (building / MANIFEST).write_text(seal(manifest), encoding="utf-8")
    rotate(root, keep, spare)
    return final


def rotate(root: Path, keep: int, spare: Collection[int] = ()) -> None:
    """Remove what is older than the newest `keep` usable steps, and what unfinished saves left.

    Damaged checkpoints above the newest usable one take no place from those that can be used.
    """
    usable = newest_checkpoint(root)
    if usable is None:
        return
    with explained(root):
        for folder in [f for f in _folders(root) if step_of(f) <= usable.step][max(keep, 1) :]:
            if step_of(folder) not in spare:
                shutil.rmtree(folder)
        for leftover in root.glob("*.tmp-*"):
            shutil.rmtree(leftover)
        sync(root)


def newest_checkpoint(root: Path, damaged: list[str] | None = None) -> Checkpoint | None:
    """The newest checkpoint whose every file is as its manifest says; damaged ones are named."""
    for folder in _folders(root):
        found = _verify(folder)
        if isinstance(found, Checkpoint):
            return found
        if damaged is not None:
            damaged.append(f"{folder.name}: {found}")
    return None


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when nothing is."""
    found = _verify(folder)
    return found if isinstance(found, str) else None


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is, if there is one."""
    return root / f"step-{step:06d}"


def checkpoint_of(root: Path, step: int) -> Checkpoint:
    """The whole checkpoint of a step.

    Raises:
        RunError: it is damaged or not there.
    """
    folder = checkpoint_folder(root, step)
    found = _verify(folder)
    if isinstance(found, str):
        raise RunError(
            f"`{folder}` is needed for the weights that the run ends with: {found}",
            hint="`--fresh` starts over; with `--set train.keep_best=off --set train.average=none` "
            "and `--allow-change train` the run ends with its last weights",
        )
    return found


def _verify(folder: Path) -> Checkpoint | str:
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        if text != seal(manifest):
            return f"{MANIFEST} is not what was written"
        listed = {str(name): dict(facts) for name, facts in manifest["files"].items()}
        checkpoint = Checkpoint(folder, manifest["step"], dict(manifest["digests"]))
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        return f"{MANIFEST} cannot be read"
    if {*listed} - {AVERAGE} != {WEIGHTS, MOMENTS, STATE}:
        return f"{MANIFEST} does not list the files of a checkpoint"
    if checkpoint.step != step_of(folder):
        return f"{MANIFEST} is of step {checkpoint.step}"
    wrong = (_compare(folder / name, facts) for name, facts in sorted(listed.items()))
    problem = next((problem for problem in wrong if problem), None) or _not_finite(folder)
    return problem or checkpoint


def _compare(path: Path, facts: Mapping[str, Any]) -> str | None:
    try:
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != facts.get("bytes"):
            return f"{path.name} has {path.stat().st_size} bytes instead of {facts.get('bytes')}"
        same = sha256_of(path) == facts.get("sha256")
    except OSError as problem:
        return f"{path.name} cannot be read: {problem.strerror}"
    return None if same else f"{path.name} is not what was written"


def restore(
    checkpoint: Checkpoint,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put weights and optimizer back as they were, bit for bit."""
    put(parameters, load_file(checkpoint.folder / WEIGHTS))
    write_moments(optimizer, parameters, load_file(checkpoint.folder / MOMENTS))


def check_fit(checkpoint: Checkpoint, parameters: Mapping[str, Parameter]) -> None:
    """Stop if the checkpoint is of other parameters; of its weights only the header is read."""
    with safe_open(checkpoint.folder / WEIGHTS, framework="pt") as file:
        names = file.keys()
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if saved == wanted:
        return
    name = min({*saved.items()} ^ {*wanted.items()})[0]
    raise RecipeError(
        f"`{checkpoint.folder}` is of other parameters than the recipe makes",
        problems=[f"`{name}`: {saved.get(name, 'not there')} -> {wanted.get(name, 'not there')}"],
        hint="`--fresh` starts over in this folder; `--out DIR` uses another one",
    )


def read_average(checkpoint: Checkpoint) -> dict[str, Tensor] | None:
    """The exponential mean that was kept with a checkpoint."""
    path = checkpoint.folder / AVERAGE
    return load_file(path) if path.exists() else None


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The step, and what else was to be said of the checkpoint when it was saved."""
    state = json.loads((checkpoint.folder / STATE).read_text(encoding="utf-8"))
    return dict(state)


def checkpoint_bytes(parameters: Mapping[str, Parameter]) -> int:
    """Disk one checkpoint takes: weights, two moments, names, and what is said of it."""
    numbers = sum(3 * p.numel() * p.element_size() for p in parameters.values())
    return numbers + 512 * len(parameters) + 16_384


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders, the newest step first."""
    found = [p for p in root.glob("step-*") if p.name[5:].isdecimal() and p.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }


def seal(manifest: Mapping[str, Any]) -> str:
    """The manifest with a digest of itself, so that a flipped bit in it shows as well."""
    inner = {name: value for name, value in manifest.items() if name != "sha256"}
    return _as_json(inner | {"sha256": hashlib.sha256(_as_json(inner).encode()).hexdigest()})


def _as_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _not_finite(folder: Path) -> str | None:
    for name in (WEIGHTS, MOMENTS, *[AVERAGE] * (folder / AVERAGE).exists()):
        try:
            found = first_not_finite(load_file(folder / name).items())
        except SafetensorError as problem:
            return f"{name} cannot be read: {problem}"
        if found:
            return f"{name}: `{found}` holds values that are not finite"
    return None
