"""Checkpoints that are whole or absent: safetensors and JSON, a manifest last, then one rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftkit.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.nn import Parameter

MANIFEST = "MANIFEST.json"
WEIGHTS = "weights.safetensors"
MOMENTS = "optimizer.safetensors"
STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One verified checkpoint on disk."""

    folder: Path
    step: int


def save_checkpoint(
    root: Path,
    step: int,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    digests: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write `root/step-NNNNNN`, then let older ones go; the last verified one always stays."""
    final = root / f"step-{step:06d}"
    building = root / f"step-{step:06d}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        building.mkdir(parents=True)
        weights = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
        save_file(weights, building / WEIGHTS)
        save_file(_moments(parameters, optimizer), building / MOMENTS)
        _write(building / STATE, _as_json({"step": step, "digests": dict(digests)}))
        _write(building / MANIFEST, seal({"step": step, "files": _describe(building)}))
        _sync(building)
        if final.exists():
            shutil.rmtree(final)
        building.rename(final)
        _sync(root)
    except OSError as problem:
        shutil.rmtree(building, ignore_errors=True)
        raise _explain(problem, root) from problem
    rotate(root, keep)
    return final


def rotate(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what unfinished saves left behind."""
    usable = newest_checkpoint(root)
    if usable is None:
        return
    for folder in _folders(root)[keep:]:
        if folder != usable.folder:
            shutil.rmtree(folder)
    for leftover in root.glob("*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def newest_checkpoint(root: Path, damaged: list[str] | None = None) -> Checkpoint | None:
    """The newest checkpoint whose every file is as its manifest says; damaged ones are named."""
    for folder in _folders(root):
        problem = find_damage(folder)
        if problem is None:
            return Checkpoint(folder, int(folder.name.removeprefix("step-")))
        if damaged is not None:
            damaged.append(f"{folder.name}: {problem}")
    return None


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when nothing is."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        if text != seal(manifest):
            return f"{MANIFEST} is not what was written"
        listed = {str(name): dict(facts) for name, facts in manifest["files"].items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{MANIFEST} cannot be read"
    if set(listed) != {WEIGHTS, MOMENTS, STATE}:
        return f"{MANIFEST} does not list the files of a checkpoint"
    wrong = (_compare(folder / name, facts) for name, facts in sorted(listed.items()))
    return next((problem for problem in wrong if problem), None) or _not_finite(folder)


def _compare(path: Path, facts: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != facts.get("bytes"):
        return f"{path.name} has {path.stat().st_size} bytes instead of {facts.get('bytes')}"
    return None if _sha256(path) == facts.get("sha256") else f"{path.name} is not what was written"


def restore(
    checkpoint: Checkpoint,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put weights and optimizer back as they were, bit for bit."""
    weights = load_file(checkpoint.folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    moments = load_file(checkpoint.folder / MOMENTS)
    for name, parameter in parameters.items():
        if f"{name}:step" not in moments:
            continue
        optimizer.state[parameter] = {
            "step": moments[f"{name}:step"].clone(),
            "exp_avg": moments[f"{name}:exp_avg"].to(parameter.device),
            "exp_avg_sq": moments[f"{name}:exp_avg_sq"].to(parameter.device),
        }


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Step and digests as the checkpoint recorded them."""
    state = json.loads((checkpoint.folder / STATE).read_text(encoding="utf-8"))
    return dict(state)


def checkpoint_bytes(parameters: Mapping[str, Parameter]) -> int:
    """Disk one checkpoint takes: weights and two moments."""
    return sum(3 * p.numel() * p.element_size() for p in parameters.values()) + 16_384


def _moments(
    parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}:{kind}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders, the newest step first."""
    found = [p for p in root.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    facts = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o666 & ~_umask())  # safetensors leaves its files unreadable for the group
        _sync(path)
        facts[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return facts


def seal(manifest: Mapping[str, Any]) -> str:
    """The manifest with a digest of itself, so that a flipped bit in it shows as well."""
    inner = {name: value for name, value in manifest.items() if name != "sha256"}
    return _as_json(inner | {"sha256": hashlib.sha256(_as_json(inner).encode()).hexdigest()})


def _as_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _not_finite(folder: Path) -> str | None:
    try:
        for name, tensor in load_file(folder / WEIGHTS).items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return f"{WEIGHTS}: `{name}` holds values that are not finite"
    except SafetensorError as problem:
        return f"{WEIGHTS} cannot be read: {problem}"
    return None


def _explain(problem: OSError, root: Path) -> WriteError:
    if problem.errno == errno.ENOSPC:
        free = shutil.disk_usage(root.parent).free / 2**20
        return WriteError(
            f"the disk is full: no room for a checkpoint in `{root}` ({free:.0f} MiB free)",
            hint="free some space and give the same command again; it goes on from the last "
            "checkpoint",
        )
    return WriteError(f"cannot write a checkpoint to `{root}`: {problem.strerror or problem}")
