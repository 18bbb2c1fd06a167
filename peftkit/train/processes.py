"""The processes that take the steps of one run together: which one this is, and what they share.

A launcher such as `torchrun` starts them and says so in the environment; accelerate then sets
`torch.distributed` up. Alone, every function here returns at once and nothing is set up. No wrapper
stands around the model, because the fast paths need it bare: each process holds the same weights,
computes the gradients of its part of an update, and adds them up with the others' here.
"""

from __future__ import annotations

import atexit
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from peftkit.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=7)
"""Others wait while the first evaluates, which may take hours; one that dies is noticed at once."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The place of this process among those of its run."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that decides, evaluates, writes and speaks."""
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, bit for bit the same in each."""
        if self.world == 1:
            return
        from torch.distributed import all_reduce

        with _together():
            for work in [all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def take_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first process's."""
        if self.world == 1:
            return
        from torch.distributed import broadcast

        with _together():
            for work in [broadcast(tensor.detach(), 0, async_op=True) for tensor in tensors]:
                work.wait()

    def tell(self, value: T) -> T:
        """In the first process: give all others a value, which `hear` returns there."""
        if self.world > 1:
            self._pass_on(value)
        return value

    def hear(self) -> Any:
        """In any but the first process: the value that the first tells."""
        return self._pass_on(None)

    def _pass_on(self, value: Any) -> Any:
        from torch.distributed import broadcast_object_list

        values = [value]
        with _together():
            broadcast_object_list(values, 0, device=_device())
        return values[0]

    def largest(self, number: int) -> int:
        """The largest of what the processes give."""
        if self.world == 1:
            return number
        import torch
        from torch.distributed import ReduceOp, all_reduce

        found = torch.tensor(number, device=_device())
        with _together():
            all_reduce(found, ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Return once every process is here."""
        self.largest(0)  # unlike `barrier`, the same on every backend


ALONE = Processes()


def is_first() -> bool:
    """Whether this process leads, by what the launcher says; true where there is none.

    Known before torch is loaded, so that only one process reads the recipe and takes the folder.
    """
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def join() -> Processes:
    """Meet the other processes that a launcher started; alone, there is nobody to wait for."""
    if "LOCAL_RANK" not in os.environ:
        return ALONE
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    atexit.register(_leave)
    return Processes(state.process_index, state.num_processes)


def _leave() -> None:
    """Take gloo down before the interpreter ends, which its threads would abort every other time.

    It waits for nobody, unlike NCCL, which may wait for a process that is gone.
    """
    from torch.distributed import destroy_process_group, get_backend, is_initialized

    if is_initialized() and get_backend() == "gloo":
        destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """What breaks an exchange, as an error that sends the reader to its cause."""
    try:
        yield
    except RuntimeError as problem:
        raise RunError(
            "another process of this run has ended, so this one cannot go on",
            hint="what that process said tells why; the same command goes on from the newest "
            "checkpoint",
        ) from problem


def _device() -> Any:
    """Where small values must be for the backend to exchange them."""
    from accelerate import PartialState

    return PartialState().device
