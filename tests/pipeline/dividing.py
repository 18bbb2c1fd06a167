"""What each of several processes does for `test_processes.py`: training by the loop alone.

`python -m torch.distributed.run --nproc-per-node 2 dividing.py BASE FOLDER` leaves in FOLDER what
each process saw, as `<case>-<rank>.json` with the weights beside it, and ends with one process that
fails. The same functions, called in the test, are the run of one process.
"""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from peftkit.adapters.attach import attach, trainable
from peftkit.data.batch import Batch, Layout, Update, stream_updates
from peftkit.data.example import Example
from peftkit.errors import RunError
from peftkit.fast.loss import summed_loss
from peftkit.recipe.sections.adapter import LoraSection
from peftkit.train.loop import train
from peftkit.train.optimizer import make_optimizer
from peftkit.train.processes import ALONE, Processes, join

STEPS = 8


@dataclass(frozen=True)
class Case:
    """One training, and what may go wrong in it."""

    rows: int = 8
    flat_optimizer: bool = True
    dropout: float = 0.0
    nan_in: int | None = None
    """The process whose loss is no number at the third step."""
    fails_in: int | None = None
    """The process that has no third update."""


CASES = {
    "packed": Case(),
    "plain": Case(flat_optimizer=False),
    "fewer rows than processes": Case(rows=1, flat_optimizer=False),
    "dropout": Case(dropout=0.3),
    "dropout again": Case(dropout=0.3),
    "diverged": Case(nan_in=1),
}


def make_examples(count: int = 20) -> list[Example]:
    draw = np.random.default_rng(2)
    examples = []
    for number in range(count):
        length = int(draw.integers(4, 40))
        trained = draw.random(length) < 0.5
        trained[0], trained[-1] = False, True
        tokens = draw.integers(6, 200, length).astype(np.int32)
        examples.append(Example(tokens, trained, f"row:{number}", "row", "row"))
    return examples


def record(updates: Iterator[Update], rows: list[list[str]], fails: bool) -> Iterator[Update]:  # noqa: FBT001
    """The same updates, with the rows that they hold written down."""
    for number, update in enumerate(updates, 1):
        if fails and number == 3:
            raise ValueError("made to fail")
        found = [each.where for b in update.micro_batches for row in b.documents for each in row]
        rows.append(found)
        yield update


def take(base: Path, case: Case, processes: Processes = ALONE) -> tuple[dict[str, Any], Any]:
    """Facts about each step that this process takes, and the weights it ends with."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.requires_grad_(requires_grad=False)
    model = attach(model, LoraSection(rank=4, dropout=case.dropout), seed=1)
    parameters = trainable(model)
    optimizer = make_optimizer(parameters, weight_decay=0.01, flat=case.flat_optimizer)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(processes.rank)  # as if machines had not made the same adapter
    calls = iter(range(1, 10_000))

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        bad = case.nan_in == processes.rank and next(calls) > 2
        return summed_loss(model, batch) * (math.nan if bad else 1.0)

    rows: list[list[str]] = []
    place = {"part": processes.rank, "parts": processes.world}
    stream = stream_updates(make_examples(), Layout(True, 8, 0), rows=case.rows, seed=5, **place)
    steps = train(
        model,
        record(stream, rows, case.fails_in == processes.rank),
        optimizer,
        lambda _: 1e-2,
        steps=range(1, STEPS + 1),
        max_grad_norm=1.0,
        seed=9,
        loss=loss,
        processes=processes,
    )
    taken: list[dict[str, Any]] = []
    expected = nullcontext() if case.nan_in is None else pytest.raises(RunError, match="diverged")
    with expected:
        taken.extend(asdict(step) for step in steps)
    weights = {name: value.detach().clone() for name, value in parameters.items()}
    return {"steps": taken, "rows": rows}, weights


def main(base: Path, folder: Path) -> None:
    processes = join()
    for name, case in CASES.items():
        facts, weights = take(base, case, processes)
        (folder / f"{name}-{processes.rank}.json").write_text(json.dumps(facts))
        save_file(weights, folder / f"{name}-{processes.rank}.safetensors")
    take(base, Case(fails_in=1), processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
