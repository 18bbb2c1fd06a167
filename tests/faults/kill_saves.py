"""Kill every kind of save after each change it makes to files, and say what was left each time.

A program, so that its forks are those of a process with one thread: `kill_saves.py FOLDER` writes
one JSON object to stdout. After each kill the files are also looked at as a power cut would leave
them: what had been written, and not yet been made to reach the disk, is zeroed.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from file_changes import supported, traced
from safetensors.torch import load_file
from torch.nn import Parameter

from peftkit.adapters.attach import attach
from peftkit.adapters.store import save_adapter
from peftkit.base.locate import Origin
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.report.record import STEPS, RunFolder
from peftkit.train.checkpoint import newest_checkpoint, restore, save_checkpoint
from peftkit.train.optimizer import make_optimizer


@dataclass(frozen=True)
class Save:
    """One kind of save, and how to tell that all is well after it was cut short."""

    prepare: Callable[[Path], object]
    """What is there before it."""
    save: Callable[[Path], object]
    problem: Callable[[Path], str | None]
    """What is wrong with what it left, or nothing."""
    again: Callable[[Path], object]
    """What the next run does."""
    kept: Callable[[Path], str | None]
    """What is wrong after that, or nothing."""


def take_step(number: int) -> tuple[dict[str, Parameter], torch.optim.Optimizer]:
    """Parameters and optimizer as they are after a step, the same ones at each call."""
    generator = torch.Generator().manual_seed(number)
    parameters = {
        "a": Parameter(torch.randn(30, 20, generator=generator)),
        "b": Parameter(torch.randn(7, generator=generator)),
    }
    optimizer = make_optimizer(parameters, weight_decay=0.1)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return parameters, optimizer


def save_step(root: Path, step: int) -> None:
    save_checkpoint(root, step, *take_step(step), digests={"recipe": "r"}, keep=2)


def checkpoint_problem(root: Path) -> str | None:
    found = newest_checkpoint(root)
    if found is None or found.step < 20:
        return f"the newest is {found}"
    parameters, optimizer = take_step(1)
    restore(found, parameters, optimizer)
    expected = take_step(found.step)[0]
    same = all(torch.equal(parameters[name], value) for name, value in expected.items())
    return None if same else f"step {found.step} is not as it was"


def checkpoint_kept(root: Path) -> str | None:
    names = sorted(path.name for path in root.iterdir())
    kept = ["step-000020", "step-000030"]
    return checkpoint_problem(root) or (None if names == kept else f"left {names}")


def make_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    return attach(model.requires_grad_(requires_grad=False), LoraSection(rank=2), seed=0)


MODEL = make_model()


def put_adapter(root: Path, value: float) -> None:
    for name, parameter in MODEL.named_parameters():
        if "lora_" in name:
            parameter.data.fill_(value)
    origin = Origin("base", root, None)
    save_adapter(MODEL, root / "adapter", origin, method="lora")


def adapter_problem(root: Path) -> str | None:
    folder = root / "adapter"
    if not folder.exists():
        return None  # between the old one and the new one, for a moment; no run is finished yet
    values = {float(t.unique()) for t in load_file(folder / "adapter_model.safetensors").values()}
    json.loads((folder / "adapter_config.json").read_text())
    return None if values in ({1.0}, {2.0}) else f"the adapter holds {values}"


def adapter_kept(root: Path) -> str | None:
    run = RunFolder(root)
    run.sweep()
    names = sorted(path.name for path in root.iterdir())
    return adapter_problem(root) or (None if names == ["adapter"] else f"left {names}")


def table(value: int) -> dict[str, Any]:
    return {"value": value, "padding": "x" * 9000}


def table_problem(root: Path) -> str | None:
    found = RunFolder(root).read("metrics.json")
    return None if found in (table(1), table(2)) else "metrics.json is neither old nor new"


def lines_problem(root: Path) -> str | None:
    steps = [line["step"] for line in RunFolder(root).lines(STEPS)]
    return None if steps in ([1], [1, 2]) else f"steps.jsonl holds {steps}"


def lines_kept(root: Path) -> str | None:
    steps = [line["step"] for line in RunFolder(root).lines(STEPS)]
    return None if steps in ([1, 3], [1, 2, 3]) else f"steps.jsonl holds {steps}"


def prepare_run(root: Path) -> None:
    save_step(root / "checkpoints", 10)
    for name in ("lock.json", "recipe.resolved.json", "adapter/README.md"):
        RunFolder(root).write(name, {"name": name})


def clear_problem(root: Path) -> str | None:
    orphaned = newest_checkpoint(root / "checkpoints") and not (root / "lock.json").exists()
    return "a checkpoint outlives its lock.json" if orphaned else None


def cleared(root: Path) -> str | None:
    left = [path.name for path in root.iterdir()]
    return f"left {left}" if left else None


SAVES = {
    "checkpoint": Save(
        prepare=lambda root: [save_step(root, step) for step in (10, 20)],
        save=lambda root: save_step(root, 30),
        problem=checkpoint_problem,
        again=lambda root: save_step(root, 30),
        kept=checkpoint_kept,
    ),
    "adapter": Save(
        prepare=lambda root: put_adapter(root, 1),
        save=lambda root: put_adapter(root, 2),
        problem=adapter_problem,
        again=lambda root: put_adapter(root, 2),
        kept=adapter_kept,
    ),
    "json": Save(
        prepare=lambda root: RunFolder(root).write("metrics.json", table(1)),
        save=lambda root: RunFolder(root).write("metrics.json", table(2)),
        problem=table_problem,
        again=lambda root: RunFolder(root).write("metrics.json", table(2)),
        kept=table_problem,
    ),
    "line": Save(
        prepare=lambda root: RunFolder(root).append(STEPS, {"step": 1}),
        save=lambda root: RunFolder(root).append(STEPS, {"step": 2}),
        problem=lines_problem,
        again=lambda root: RunFolder(root).append(STEPS, {"step": 3}),
        kept=lines_kept,
    ),
    "fresh": Save(
        prepare=prepare_run,
        save=lambda root: RunFolder(root).clear(),
        problem=clear_problem,
        again=lambda root: RunFolder(root).clear(),
        kept=cleared,
    ),
}
DURABLE = ("checkpoint", "adapter", "json")
"""What must be there after a power cut; a line need not be, until a checkpoint counts on it."""


def zero(path: Path) -> None:
    """What a power cut makes of content that had not reached the disk."""
    if path.is_file():
        path.write_bytes(bytes(path.stat().st_size))


def kill_after_each_change(folder: Path, kind: Save, *, durable: bool) -> dict[str, Any]:
    """How often a save was killed, and each time that something was wrong after it."""
    before, root, power = (folder / name for name in ("before", "work", "power"))
    before.mkdir(parents=True)
    kind.prepare(before)
    wrong: list[str] = []
    number, killed = 0, True
    while killed:
        number += 1
        shutil.copytree(before, root)
        trace = traced(lambda: kind.save(root), root, kill_after=number)
        killed = trace.killed
        changes = [
            [c.name, *(path.removeprefix(f"{root}/") for path in c.paths)] for c in trace.changes
        ]
        where = f"{number} ({' '.join(changes[-1])})"
        shutil.copytree(root, power)
        for path in trace.unsynced:
            zero(power / Path(path).relative_to(root))
        if durable:
            wrong += [f"power cut after {where}: {why}" for why in [kind.problem(power)] if why]
        wrong += [f"killed after {where}: {why}" for why in [kind.problem(root)] if why]
        kind.again(root)
        wrong += [f"next run after {where}: {why}" for why in [kind.kept(root)] if why]
        shutil.rmtree(root)
        shutil.rmtree(power)
    return {"killed": number - 1, "changes": changes, "wrong": wrong}


def main() -> None:
    if why := supported():
        sys.stdout.write(json.dumps({"unsupported": why}))
        return
    folder = Path(sys.argv[1])
    found = {
        name: kill_after_each_change(folder / name, kind, durable=name in DURABLE)
        for name, kind in SAVES.items()
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
