"""Does memory stay flat from ten thousand rows to a million? Prepares them in fresh processes.

What counts is anonymous memory: what the process itself has written, and nobody can take away.
Pages of the mapped Arrow file are left out, because the kernel drops them when others need room.
It is sampled every 5 ms by a thread; the rise is over what was there once everything was imported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (10_000, 100_000, 1_000_000)
SMALLER = (10_000, 100_000)
"""Sizes that are also held as a list of examples, which is what memory is spared, and checked."""
HELD_OUT = 1_000
UPDATES = 50


def main() -> None:
    """Measure each size in a process of its own and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=3, metavar=("FILE", "HELD", "HOW"))
    measured = parser.parse_args().measure
    if measured:
        json.dump(measure(Path(measured[0]), Path(measured[1]), measured[2]), sys.stdout)
        return
    from benchmarks.record import write_result

    with tempfile.TemporaryDirectory() as folder:
        found = [run(Path(folder), rows, how) for rows, how in arms()]
    print(json.dumps(found, indent=2))
    print(write_result(Path(__file__).parent, {"question": "memory", "arms": found}))


def arms() -> Iterator[tuple[int, str]]:
    """Rows, and how: built, taken from the cache, made a list of, or with the default checks."""
    for rows in SIZES:
        yield rows, "built"
        yield rows, "kept"
        if rows in SMALLER:
            yield rows, "list"
            yield rows, "checked"


def run(folder: Path, rows: int, how: str) -> dict[str, Any]:
    """The figures of one fresh process."""
    path, held = folder / f"{rows}.jsonl", folder / "held.jsonl"
    write_rows(path, range(rows))
    write_rows(held, range(-HELD_OUT, 0))
    own = {"PEFTKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--measure", str(path), str(held), how]
    done = subprocess.run(words, env={**os.environ, **own}, stdout=subprocess.PIPE, check=True)
    figures = {"rows": rows, "how": how, "file_mib": round(path.stat().st_size / 2**20, 1)}
    figures |= json.loads(done.stdout)
    print(json.dumps(figures), file=sys.stderr)
    return figures


def write_rows(path: Path, numbers: range) -> None:
    """Short rows, each another one."""
    with path.open("w", encoding="utf-8") as file:
        for number in numbers:
            row = {"prompt": f"double {number}: ", "completion": str(2 * number)}
            file.write(json.dumps(row) + "\n")


def settings(path: Path, held: Path, how: str) -> dict[str, Any]:
    """Of the data: `checked` looks for duplicates and leaks, and splits, as most recipes do."""
    if how == "checked":
        return {"validation": {"fraction": HELD_OUT / int(path.stem)}}
    return {"validation": str(held), "leakage": "off", "duplicates": "off"}


def measure(path: Path, held: Path, how: str) -> dict[str, Any]:
    """Anonymous memory and CPU time of preparing one file and taking some updates of it."""
    import numpy as np

    from peftkit.base.load import load_tokenizer, stop_ids
    from peftkit.base.locate import locate
    from peftkit.data import arrow, tokenized
    from peftkit.data.batch import Layout, stream_updates
    from peftkit.data.draft import Encoder
    from peftkit.data.prepare import prepare_data
    from peftkit.data.views import lengths_of
    from peftkit.recipe.sections.base import BaseSection
    from peftkit.recipe.sections.data import DataSection

    tokenized.SMALLEST = 1  # the smallest size is held as the others are
    arrow.write_examples(path.with_suffix(".arrow"), ())  # what is imported late is imported
    origin = locate(BaseSection(model="builtin:tiny"))
    tokenizer = load_tokenizer(origin, ())
    encoder = Encoder(tokenizer, stop_ids(origin, tokenizer), 64, "error")
    import_module("datasketch")
    section = DataSection.model_validate({"train": str(path), **settings(path, held, how)})
    tokenizer("one")
    before, started = anonymous(), time.process_time()
    with sampling() as peak:
        data = prepare_data(section, encoder)
        examples = list(data.train.examples) if how == "list" else data.train.examples
        facts, digests = data.facts["train"], data.digests
        longest = int(np.max(lengths_of(examples)))
        prepared = time.process_time() - started
        stream = stream_updates(
            examples, Layout(packing=True, micro_rows=8, pad_id=0), rows=16, seed=0
        )
        trained = sum(next(stream).trained_tokens for _ in range(UPDATES))
    return {
        "before_mib": round(before, 1),
        "peak_mib": round(max(peak), 1),
        "rise_mib": round(max(peak) - before, 1),
        "cpu_seconds": round(prepared, 2),
        "tokens": facts["tokens"],
        "longest": longest,
        "trained_in_updates": trained,
        "digest": digests["train"][:16],
    }


@contextmanager
def sampling() -> Iterator[list[float]]:
    """MiB of anonymous memory, again and again while the block runs."""
    seen, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen[0] = max(seen[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        seen.append(anonymous())
        done.set()
        watcher.join()


def anonymous() -> float:
    """MiB of memory that no file stands behind."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
