"""A process that has imported everything, and forks a run of `peftkit` for each order it reads.

Importing torch takes seconds, a run of these tests one; so the runs are forks of this process. Each
goes through the whole command line, as `peftkit` does. An order may name calls at which something
is done to the run: `{"at": "module:function", "nth": 3, "do": ["signal", 15]}`. A profiler sees the
calls; nothing of the package is replaced by it.
"""

import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PATIENCE = 240
"""Seconds after which a run counts as hanging."""
PRELOADED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora",
    "jinja2",
    "peftkit.cli.finetune",
    "peftkit.pipeline.finetune",
)

Order = dict[str, Any]


def act(what: str, *details: Any) -> None:
    """Do something to the process that calls this."""
    ACTIONS[what](*details)


def fill(folder: str, left: int) -> None:
    """Use up the disk of `folder` but for `left` bytes."""
    size = max(free(folder) - left, 0)
    with (Path(folder) / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))


def free(folder: str) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def limit(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def wait_for_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


def break_name(module: str, name: str, broken: str) -> None:
    """Put a deliberately wrong function in the place of a right one."""
    place = importlib.import_module(module)
    setattr(place, name, BROKEN[broken](getattr(place, name)))


def of_step_0(right: Callable[..., Any]) -> Callable[..., Any]:
    """As if the position had not been kept: what depends on the step begins again."""

    def wrong(*arguments: Any, **named: Any) -> Any:
        return right(*arguments, **{**named, "start": 0})

    return wrong


def one_later(right: Callable[..., Any]) -> Callable[..., Any]:
    """Off by one in the second argument: the step, or the number that a seed is made of."""
    return lambda first, number, **named: right(first, number + 1, **named)


def without_moments(right: Callable[..., Any]) -> Callable[..., Any]:
    """Weights as they were saved, the optimizer as if it had never run."""

    def wrong(checkpoint: Any, parameters: Any, optimizer: Any) -> None:
        right(checkpoint, parameters, optimizer)
        optimizer.state.clear()

    return wrong


def without_weights(right: Callable[..., Any]) -> Callable[..., Any]:
    """The optimizer as it was saved, on weights that have not been trained."""

    def wrong(checkpoint: Any, parameters: Any, optimizer: Any) -> None:
        fresh = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        right(checkpoint, parameters, optimizer)
        for name, parameter in parameters.items():
            parameter.data.copy_(fresh[name])

    return wrong


BROKEN = {
    "of_step_0": of_step_0,
    "one_later": one_later,
    "without_moments": without_moments,
    "without_weights": without_weights,
}
ACTIONS: dict[str, Callable[..., Any]] = {
    "await": wait_for_file,
    "break": break_name,
    "copy": shutil.copytree,
    "exit": os._exit,
    "fill": fill,
    "limit": limit,
    "signal": lambda number: os.kill(os.getpid(), number),
}


def watch_calls(points: list[Order]) -> None:
    """Act at the named calls of this process, each counted once the one it comes after is seen.

    A generator is called again for each thing it yields: `train`, once a step.
    """
    waiting = [
        Point(point["at"], point["nth"], point["do"], point.get("after")) for point in points
    ]

    def see(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        place = f"{frame.f_globals.get('__name__')}:{frame.f_code.co_name}"
        due = [point for point in waiting if point.reached(place)]
        for point in due:
            waiting.remove(point)
            act(*point.do)
        if not waiting:
            sys.setprofile(None)

    sys.setprofile(see)


@dataclass
class Point:
    """A call at which something is done to a run."""

    at: str
    left: int
    do: list[Any]
    after: list[Any] | None = None

    def reached(self, place: str) -> bool:
        """Whether a call of `place` is the one."""
        if self.after is not None:
            self.after[1] -= place == self.after[0]
            self.after = self.after if self.after[1] else None
        elif self.at in (place, "*"):
            self.left -= 1
            return not self.left
        return False


def attach_streams(order: Order) -> None:
    """Where a run's words go: a file, or a terminal that is its own."""
    terminal = order.get("terminal")
    if terminal:
        os.setsid()
    stream = os.open(terminal or order["log"], os.O_RDWR | os.O_APPEND)
    for standard in (0, 1, 2):
        os.dup2(stream, standard)
    os.close(stream)


def run(order: Order) -> int:
    """One run, in a fork."""
    attach_streams(order)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for what in order.get("first", ()):
        act(*what)
    if order.get("points"):
        watch_calls(order["points"])
    from peftkit.cli.main import main

    return main(order["arguments"])


def start(order: Order) -> dict[str, int]:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return {"pid": pid}
    code = 70  # of a run that ends in a traceback
    try:
        code = run(order)
    finally:
        sys.stdout.flush()
        if code == 70:
            sys.excepthook(*sys.exc_info())
        os._exit(code)


def wait(pid: int) -> dict[str, int]:
    """The exit code, negative for a signal that nobody handled; a run that hangs is killed."""
    end = time.monotonic() + PATIENCE
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return {"code": os.waitstatus_to_exitcode(status)}
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def serve() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        order = json.loads(line)
        answer = wait(order["pid"]) if "pid" in order else start(order)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    serve()
