"""What a step costs on a device: seconds by events, memory of its own, what its kernels do."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
"""Categories of a trace that keep a GPU busy; annotations span them and would count idle time."""
NAMED = 12
"""Kernels of a profile that are named, the longest."""
COPIED = 2**30
"""Bytes of the copy that shows the memory's rate."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Most bytes that were held for one arm; of all other arms nothing is counted."""

    allocated: int
    reserved: int


class Meter:
    """Measures on one device; on a CPU, for `--smoke`, by the host's clock and without memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gpu = device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done all it was told."""
        if self.gpu:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Give back what nobody holds, so that no arm works within another's leftovers."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()

    def time(self, work: Callable[[], object]) -> float:
        """Seconds from before `work` to the end of its last kernel."""
        self.wait()
        if not self.gpu:
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    def remember(self, work: Callable[[], object], own: Callable[[], int]) -> Memory | None:
        """Most memory during `work` for one arm, which holds `own` bytes at its beginning."""
        if not self.gpu:
            work()
            own()
            return None
        self.clear()
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - own()
        work()
        self.wait()
        most = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        return Memory(most[0] - others, most[1] - others)

    def profile(self, work: Callable[[], object], count: int) -> dict[str, Any]:
        """How busy `count` calls keep the device; slower than without a profiler."""
        kind = ProfilerActivity.CUDA if self.gpu else ProfilerActivity.CPU
        with profile(activities=[kind]):
            work()  # loads the profiler itself
            self.wait()
        with profile(activities=[kind]) as seen:
            started = time.perf_counter()
            for _ in range(count):
                work()
            self.wait()
            wall = time.perf_counter() - started
        return describe_events(
            _read_trace(seen), wall, count, ON_DEVICE if self.gpu else {"cpu_op"}
        )

    def measure_gemm(self, width: int) -> float:
        """Operations a second of a square bfloat16 product of random numbers, by the median."""
        one, other = (_random(width, self.device) for _ in range(2))
        seconds = [self.time(lambda: torch.mm(one, other)) for _ in range(13)][3:]
        return 2 * width**3 / statistics.median(seconds)

    def measure_copy(self) -> float:
        """Bytes a second, read and written, of a large copy within the device."""
        source = torch.empty(COPIED if self.gpu else COPIED // 64, dtype=torch.uint8)
        source = source.to(self.device)
        target = torch.empty_like(source)
        seconds = [self.time(lambda: target.copy_(source)) for _ in range(8)][3:]
        return 2 * len(source) / statistics.median(seconds)


def describe_events(
    events: Iterable[dict[str, Any]], wall: float, count: int, kinds: set[str]
) -> dict[str, Any]:
    """Share of `wall` in which something ran, calls of kernels, and the longest by name."""
    busy = [event for event in events if event.get("cat") in kinds]
    spans = [(event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6) for event in busy]
    seconds, launches = Counter[str](), Counter[str]()
    for event in busy:
        seconds[event["name"][:120]] += event["dur"] / 1e6
        launches[event["name"][:120]] += 1
    return {
        "busy": measure_union(spans) / wall,
        "busy_seconds_per_step": measure_union(spans) / count,
        "launches_per_step": sum(e["cat"] in ("kernel", "cpu_op") for e in busy) / count,
        "longest": [
            {"name": name, "seconds_per_step": each / count, "per_step": launches[name] / count}
            for name, each in seconds.most_common(NAMED)
        ],
    }


def measure_union(spans: Sequence[tuple[float, float]]) -> float:
    """Length of what the spans cover together, overlaps once."""
    total, reached = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    return total


def own_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, gradients and moments, each storage once."""
    held = [*model.parameters(), *model.buffers()]
    held += [p for group in optimizer.param_groups for p in group["params"]]
    held += [tensor.grad for tensor in held if tensor.grad is not None]
    held += [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    packed = [getattr(weight, "quant_state", None) for weight in model.parameters()]
    held += [state.absmax for state in packed if state is not None]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
    return sum(storage.nbytes() for storage in storages.values())


def _read_trace(seen: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return found


def _random(width: int, device: torch.device) -> torch.Tensor:
    return torch.randn(width, width, device=device).bfloat16()
