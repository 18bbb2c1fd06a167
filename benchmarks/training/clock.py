"""What a piece of work costs: CPU seconds, the machine's best rate, bytes kept for backward."""

from __future__ import annotations

import resource
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

GEMM_ROWS, GEMM_WIDTH, GEMM_REPEATS = 1024, 2048, 3


def cpu_seconds() -> float:
    """CPU seconds of this process so far, and of processes it has waited for (compilers)."""
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + others.ru_utime + others.ru_stime


def measure_gemm(dtype: torch.dtype) -> float:
    """Floating-point operations per CPU second of a large matrix product, the best of a few."""
    one = torch.randn(GEMM_ROWS, GEMM_WIDTH).to(dtype)
    other = torch.randn(GEMM_WIDTH, GEMM_WIDTH).to(dtype)
    torch.nn.functional.linear(one, other)
    best = float("inf")
    for _ in range(GEMM_REPEATS):
        started = cpu_seconds()
        torch.nn.functional.linear(one, other)
        best = min(best, cpu_seconds() - started)
    return 2 * GEMM_ROWS * GEMM_WIDTH**2 / best


class Kept:
    """Bytes that autograd keeps for backward: each storage once, the weights themselves left out.

    `total` is over all micro-batches; `peak` is what was kept at one time.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        self.total = self.peak = self._now = 0
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self._users: dict[int, int] = {}

    def take(self, tensor: torch.Tensor) -> _Held:
        """Count a tensor that is saved; it is let go when the graph drops what this returns."""
        storage = tensor.untyped_storage()
        held = _Held(self, tensor.detach(), storage.data_ptr(), storage.nbytes())
        if held.place not in self._weights:
            if not self._users.get(held.place):
                self.total += held.size
                self._now += held.size
                self.peak = max(self.peak, self._now)
            self._users[held.place] = self._users.get(held.place, 0) + 1
        return held

    def drop(self, held: _Held) -> None:
        """Count one user of a storage less."""
        if held.place in self._weights:
            return
        self._users[held.place] -= 1
        if not self._users[held.place]:
            self._now -= held.size


class _Held:
    """A saved tensor, for as long as the graph holds it."""

    def __init__(self, kept: Kept, tensor: torch.Tensor, place: int, size: int) -> None:
        self.kept, self.tensor, self.place, self.size = kept, tensor, place, size

    def __del__(self) -> None:
        self.kept.drop(self)


@contextmanager
def watch_kept(model: torch.nn.Module) -> Iterator[Kept]:
    """Inside, what autograd keeps for backward is counted."""
    kept = Kept(parameter.data for parameter in model.parameters())
    with torch.autograd.graph.saved_tensors_hooks(kept.take, lambda held: held.tensor):
        yield kept
