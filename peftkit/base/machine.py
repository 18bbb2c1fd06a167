"""What this machine has: device, cores, memory, and the versions that matter for a result."""

from __future__ import annotations

import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("peftkit", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")


def choose_device() -> torch.device:
    """The device accelerate would place a run on: a GPU where there is one."""
    from accelerate import PartialState

    return torch.device(PartialState(cpu=not torch.cuda.is_available()).device)


def describe_machine() -> dict[str, Any]:
    """The machine's shape, without its name."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(total_memory() / 2**30, 1),
        "gpu": gpu,
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def local_processes() -> int:
    """How many processes of this run a launcher such as `torchrun` put on this machine."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(int(said), 1) if said.isdigit() else 1


def own_memory() -> int:
    """Bytes of memory that are this process's to plan with: its GPU's, or its share of all."""
    return total_memory() if torch.cuda.is_available() else total_memory() // local_processes()


def total_memory() -> int:
    """Bytes of memory in all: the GPU's where there is one, else the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """Most bytes this process has held so far."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
