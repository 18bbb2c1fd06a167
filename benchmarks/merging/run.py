"""How do merges compare with mergekit? Whole processes in turns, one thread, equality first.

python benchmarks/merging/run.py --mergekit /tmp/mergekit-venv/bin/mergekit-yaml [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from arm import KEEP, WEIGHTS
from models import write_adapters, write_models
from record import write_result

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
NUMBERS = {"adapter-0": 1.0, "adapter-1": 0.7}
LAYERS_LOOKED_AT = ("layers.0.", "layers.23.")
OURS = {"sum": "sum", "ties": "ties", "lora": "lora", "copy": "copy"}
THEIRS = {"sum": "task_arithmetic", "ties": "ties", "lora": "task_arithmetic"}


@dataclass(frozen=True, slots=True)
class Took:
    """What a process took."""

    cpu: float
    peak_mib: float
    disk_mib: float
    said: dict[str, float]


def recipe_of(what: str, folder: Path, precision: str) -> str:
    """What mergekit is told; JSON is YAML."""
    if what == "lora":
        models = [
            {"model": f"{folder / 'base'}+{folder / name}", "parameters": {"weight": weight}}
            for name, weight in NUMBERS.items()
        ]
    else:
        more = {"density": KEEP} if what == "ties" else {}
        models = [
            {"model": str(folder / name), "parameters": {"weight": weight, **more}}
            for name, weight in WEIGHTS.items()
        ]
    said: dict[str, Any] = {
        "merge_method": THEIRS[what],
        "base_model": str(folder / "base"),
        "dtype": precision,
        "models": models,
    }
    return json.dumps(said | ({"out_dtype": "bfloat16"} if precision == "float32" else {}))


def start(command: Sequence[str], work: Path) -> Took:
    """Run a process and wait for it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    log = work.with_suffix(".log")
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        peak = watch(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{command}\n{log.read_text()[-3000:]}")
    disk = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    found = json.loads(said.splitlines()[-1]) if said.startswith("{") else {}
    return Took(used.ru_utime + used.ru_stime, peak, disk / 2**20, found)


def watch(process: int) -> float:
    """The peak of a process's memory in MiB, until it ends.

    What the system tells of an ended process includes its parent's memory before it began.
    """
    peak = 0.0
    while True:
        try:
            said = Path(f"/proc/{process}/status").read_text()
        except OSError:
            return peak
        if "State:\tZ" in said:
            return peak
        found = [line.split()[1] for line in said.splitlines() if line.startswith("VmHWM")]
        peak = max(peak, *(int(each) / 1024 for each in found), 0.0)
        time.sleep(0.05)


def run_ours(what: str, folder: Path, work: Path) -> Took:
    command = [sys.executable, str(HERE / "arm.py"), OURS[what], str(folder), str(work / "out")]
    work.mkdir()
    return start(command, work)


def run_theirs(mergekit: str, what: str, folder: Path, work: Path, precision: str) -> Took:
    work.mkdir()
    recipe = work.with_suffix(".yml")
    recipe.write_text(recipe_of(what, folder, precision))
    flags = ["--quiet", "--no-copy-tokenizer", "--no-write-model-card"]
    if what == "lora":
        flags += ["--lora-merge-cache", str(work / "cache")]
    return start([mergekit, str(recipe), str(work / "out"), *flags], work)


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)


def read(folder: Path, name: str) -> torch.Tensor:
    """One tensor; only its own file's bytes are read."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118 - not a mapping
                return file.get_tensor(name)
    raise KeyError(name)


def compare(folder: Path, ours: Path, theirs: Path, *, ties: bool) -> dict[str, Any]:
    """The gate: a bfloat16 step of the base's weight is all that two results may differ by.

    Where a size is exactly that of the smallest that is kept, mergekit's sort keeps any of them:
    those entries are counted apart.
    """
    equal = within = whole = undecided = 0
    for name, mine in tensors(ours):
        base = read(folder / "base", name).float()
        other = read(theirs, name)
        decided = torch.ones_like(base, dtype=torch.bool)
        if ties:
            for tuned in WEIGHTS:
                sizes = (read(folder / tuned, name).float() - base).abs()
                kept = max(int(KEEP * sizes.numel()), 1)
                bound = sizes.flatten().kthvalue(sizes.numel() - kept + 1).values
                decided &= sizes != bound
        step = 2.0 ** (torch.maximum(base.abs(), mine.float().abs()).log2().floor() - 7)
        difference = (mine.float() - other.float()).abs()
        equal += int((mine == other).sum())
        within += int((difference <= step)[decided].sum())
        undecided += int((~decided).sum())
        whole += mine.numel()
    return {
        "entries": whole,
        "equal": equal / whole,
        "undecided": undecided / whole,
        "within_a_step": within / (whole - undecided),
    }


def measure_loss(folder: Path, ours: Path, theirs: Path) -> dict[str, float]:
    """How far both are from the sum of two adapters, by its norm."""
    exact = 0.0
    missing = {"ours": 0.0, "mergekit": 0.0}
    factors = [dict(tensors(folder / name)) for name in NUMBERS]
    saved = dict(tensors(ours))
    for name, merged in tensors(theirs):
        if "_proj" not in name or not any(part in name for part in LAYERS_LOOKED_AT):
            continue
        here = f"base_model.model.{name.removesuffix('.weight')}"
        ends = (f"{here}.lora_B.weight", f"{here}.lora_A.weight")
        wanted = sum(
            weight * (each[ends[0]].double() @ each[ends[1]].double())
            for each, weight in zip(factors, NUMBERS.values(), strict=True)
        )
        mine = saved[ends[0]].double() @ saved[ends[1]].double()
        other = merged.double() - read(folder / "base", name).double()
        exact += float(wanted.square().sum())
        missing["ours"] += float((mine - wanted).square().sum())
        missing["mergekit"] += float((other - wanted).square().sum())
    return {name: (each / exact) ** 0.5 for name, each in missing.items()}


def middle(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mergekit", required=True, help="its `mergekit-yaml`")
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    took: dict[str, list[Took]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder, len(WEIGHTS))
        write_adapters(folder, folder / "base", len(NUMBERS))
        gates: dict[str, Any] = {}
        for number in range(told.rounds):
            for what in ("copy", "sum", "ties", "lora"):
                took[f"{what} ours"].append(run_ours(what, folder, folder / "ours"))
                if what != "copy":
                    mine = run_theirs(told.mergekit, what, folder, folder / "theirs", "bfloat16")
                    took[f"{what} mergekit"].append(mine)
                    if not number:
                        gates[what] = gate(folder, what)
                    shutil.rmtree(folder / "theirs")
                shutil.rmtree(folder / "ours")
                print(number, what, [round(each[-1].cpu, 1) for each in took.values()], flush=True)
            if number == 0:  # TIES of float32 takes as long, and the sum shows what it changes
                once = run_theirs(told.mergekit, "sum", folder, folder / "theirs", "float32")
                took["sum mergekit float32"].append(once)
                run_ours("sum", folder, folder / "ours")
                gates["sum float32"] = gate(folder, "sum")
                shutil.rmtree(folder / "theirs")
                shutil.rmtree(folder / "ours")
            print(write_result(HERE, summarize(took, gates, number + 1)), flush=True)


def gate(folder: Path, what: str) -> dict[str, Any]:
    ours, theirs = folder / "ours" / "out", folder / "theirs" / "out"
    if what == "lora":
        return measure_loss(folder, ours, theirs)
    return compare(folder, ours, theirs, ties=what == "ties")


def summarize(took: dict[str, list[Took]], gates: dict[str, Any], rounds: int) -> dict[str, Any]:
    ratios = {
        f"{what} {figure}": middle(
            [
                getattr(theirs, figure) / getattr(ours, figure)
                for ours, theirs in zip(took[f"{what} ours"], took[f"{what} mergekit"], strict=True)
            ]
        )
        for what in THEIRS
        for figure in ("cpu", "peak_mib", "disk_mib")
    }
    copies = [2 * each.said["bytes"] / each.said["copy"] / 1e9 for each in took["copy ours"]]
    files = took["copy ours"][0].said["bytes"] * (len(WEIGHTS) + 2)
    sums = [files / each.said["merge"] / 1e9 for each in took["sum ours"]]
    whole = [files / (each.said["merge"] + each.said["digests"]) / 1e9 for each in took["sum ours"]]
    return {
        "rounds": rounds,
        "gates": gates,
        "arms": {name: [asdict(each) for each in several] for name, several in took.items()},
        "mergekit_by_ours": ratios,
        "copy_gb_per_cpu_second": middle(copies),
        "sum_gb_per_cpu_second": middle(sums),
        "sum_by_copy": middle([a / b for a, b in zip(sums, copies, strict=True)]),
        "sum_with_digests_by_copy": middle([a / b for a, b in zip(whole, copies, strict=True)]),
    }


if __name__ == "__main__":
    main()
