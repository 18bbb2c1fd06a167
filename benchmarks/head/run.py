"""Is the frozen head's loss worth a path of its own? Arms in turns, one thread, equality first.

python benchmarks/head/run.py [--trl FOLDER]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._inductor.config
from torch.nn.functional import cross_entropy, linear

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import write_result

from peftkit.data.example import IGNORED
from peftkit.fast import chunked
from peftkit.fast.chunked import Head, project_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TOKENS, WIDTH, VOCABULARY = 512, 576, 49_152
DENSITIES = (1.0, 0.5, 0.25)
DTYPES = (torch.float32, torch.bfloat16)
ROUNDS = 7
LOSS_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 2e-3}
COSINE_LIMIT = 0.999
TRL_TILE, TRL_OUTPUTS = 32_768, ("log_probs", "entropy", "is_top1")
"""What `SFTTrainer` 1.16 gives its kernel."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Hidden states, the weight they meet, and each one's target."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor

    def to(self, dtype: torch.dtype) -> Task:
        """The same task in another dtype."""
        return Task(self.hidden.to(dtype), self.weight.to(dtype), self.targets)


def make_task(density: float) -> Task:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=draw)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw) * 2 * WIDTH**-0.5
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=draw)
    skipped = torch.randperm(TOKENS, generator=draw)[round(density * TOKENS) :]
    targets[skipped] = IGNORED
    # Rounded once for every arm, so that a difference is the arm's own.
    return Task(hidden.bfloat16().float(), weight.bfloat16().float(), targets)


def lose_plainly(task: Task) -> torch.Tensor:
    logits = linear(task.hidden, task.weight).float()
    return cross_entropy(logits, task.targets, ignore_index=IGNORED, reduction="sum")


def pick(task: Task) -> Task:
    places = (task.targets != IGNORED).nonzero()[:, 0]
    return Task(task.hidden.index_select(0, places), task.weight, task.targets[places])


def lose_picked(task: Task) -> torch.Tensor:
    return lose_plainly(pick(task))


def lose_ours(task: Task) -> torch.Tensor:
    picked = pick(task)
    return project_losses(picked.hidden, picked.targets, Head(task.weight)).sum()


def lose_whole_chunk(task: Task) -> torch.Tensor:
    with softmax_over(chunked.CPU_ROWS):
        return lose_ours(task)


@contextmanager
def softmax_over(rows: int) -> Iterator[None]:
    before, chunked.CPU_BLOCK = chunked.CPU_BLOCK, rows * VOCABULARY
    try:
        yield
    finally:
        chunked.CPU_BLOCK = before


def lose_as_trl(task: Task) -> torch.Tensor:
    from trl.kernels import ChunkedLogProbFunction

    targets = task.targets.clamp(min=0)
    settings = (1.0, TRL_TILE, None, 1.0, TRL_OUTPUTS)
    losses = ChunkedLogProbFunction.apply(task.hidden, task.weight, None, targets, *settings)[0]
    return -losses.masked_fill(task.targets == IGNORED, 0).sum()


def differentiate(lose: Callable[[Task], torch.Tensor], task: Task) -> tuple[float, torch.Tensor]:
    leaf = task.hidden.detach().requires_grad_()
    loss = lose(Task(leaf, task.weight, task.targets))
    loss.backward()
    return loss.item(), leaf.grad


def compare(lose: Callable[[Task], torch.Tensor], task: Task) -> dict[str, Any]:
    """The gate: loss and gradient against the plain ones in float32."""
    wanted, slope = differentiate(lose_plainly, task.to(torch.float32))
    loss, gradient = differentiate(lose, task)
    error = abs(loss - wanted) / wanted
    cosine = torch.cosine_similarity(gradient.double().flatten(), slope.double().flatten(), dim=0)
    equal = error <= LOSS_LIMIT[task.hidden.dtype] and cosine.item() > COSINE_LIMIT
    return {"loss_error": error, "cosine": cosine.item(), "equal": equal}


def count_kept(lose: Callable[[Task], torch.Tensor], task: Task) -> int:
    """Bytes that autograd keeps for backward, each storage once, without the weight's."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = task.hidden.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = lose(Task(leaf, task.weight, task.targets))
    kept.pop(task.weight.untyped_storage().data_ptr(), None)
    del loss
    return sum(kept.values())


def time_in_turns(functions: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """CPU seconds of each function in each round but the first."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(ROUNDS + 1):
        for name, function in functions.items():
            started = time.process_time()
            function()
            if number:
                seconds[name].append(time.process_time() - started)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure_arms(
    arms: Mapping[str, Callable[[Task], torch.Tensor]], task: Task
) -> dict[str, dict[str, Any]]:
    found = {name: compare(lose, task) for name, lose in arms.items()}
    for name, lose in arms.items():
        found[name]["kept_bytes"] = count_kept(lose, task)
    sound = {name: lose for name, lose in arms.items() if found[name]["equal"]}
    seconds = time_in_turns(
        {name: lambda lose=lose: differentiate(lose, task) for name, lose in sound.items()}
    )
    for name, taken in seconds.items():
        found[name]["seconds"] = spread(taken)
        pairs = zip(seconds["plain"], taken, strict=True)
        found[name]["times_plain"] = spread([plain / each for plain, each in pairs])
    return found


def measure_softmax(dtype: torch.dtype) -> dict[str, Any]:
    """The softmax of one chunk, from its logits to its slopes."""
    draw = torch.Generator().manual_seed(0)
    chosen = torch.randint(VOCABULARY, (chunked.CPU_ROWS, 1), generator=draw)
    first = (torch.randn(chunked.CPU_ROWS, VOCABULARY, generator=draw) * 2).to(dtype)
    logits, head = first.clone(), Head(first)
    block = chunked.choose_rows(logits.device, VOCABULARY)[1]
    compiled = torch.compile(_score_whole)

    def by(rows: int) -> None:
        logits.copy_(first)
        for start in range(0, len(logits), rows):
            few = slice(start, start + rows)
            chunked._score(logits[few], chosen[few], head, slopes=True)

    started = time.perf_counter()
    _, slopes = compiled(first, chosen)
    cold = time.perf_counter() - started
    by(block)
    if not torch.allclose(slopes.float(), logits.float(), atol=1e-2):
        raise SystemExit("the compiled softmax differs")
    functions = {
        "whole_chunk": lambda: by(len(logits)),
        "blocks": lambda: by(block),
        "compiled": lambda: compiled(first, chosen),
        "copy": lambda: logits.copy_(first),
    }
    seconds = time_in_turns(functions)
    return {name: spread(taken) for name, taken in seconds.items()} | {"compile_wall_seconds": cold}


def _score_whole(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = logits.float()
    largest = wide.amax(1, keepdim=True)
    powers = (wide - largest).exp()
    total = powers.sum(1, keepdim=True)
    losses = total.log() + largest - wide.gather(1, targets)
    minus = torch.full_like(targets, -1, dtype=torch.float32)
    return losses, (powers / total).scatter_add(1, targets, minus).to(logits.dtype)


def main() -> None:
    """Measure every dtype and density and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", type=Path, help="a folder that holds trl, if it is not installed")
    given = parser.parse_args()
    if given.trl is not None:
        sys.path.append(str(given.trl))
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1
    arms = {
        "plain": lose_plainly,
        "picked": lose_picked,
        "whole_chunk_softmax": lose_whole_chunk,
        "peftkit": lose_ours,
    }
    if importlib.util.find_spec("trl") is not None:
        arms["trl"] = lose_as_trl
    measured: dict[str, Any] = {"rounds": ROUNDS, "left_out": sorted({"trl"} - arms.keys())}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        tasks = {f"{density:g}": make_task(density).to(dtype) for density in DENSITIES}
        measured[name] = {"softmax": measure_softmax(dtype)}
        for density, task in tasks.items():
            print(name, density, flush=True)
            measured[name][density] = measure_arms(arms, task)
    print(write_result(Path(__file__).parent, measured))


if __name__ == "__main__":
    main()
