"""One arm of the benchmark in a process of its own; what it measures itself goes to stdout as JSON.

python arm.py sum|ties|lora|copy FOLDER OUT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

PIECE = 1 << 20
WEIGHTS = {"one": 0.5, "two": 0.4, "three": 0.3}
KEEP = 0.2


def merge_dense(folder: Path, out: Path, method: str) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    from peftkit.base.locate import Origin, digest
    from peftkit.merge.checkpoints import How, merge_checkpoints
    from peftkit.merge.terms import Part

    hows = {
        "sum": How("task-arithmetic"),
        "ties": How("ties@mergekit", {"keep": KEEP}),
    }
    parts = [Part(name, str(folder / name), weight) for name, weight in WEIGHTS.items()]
    started = time.process_time()
    for name in ("base", *WEIGHTS):  # known from here on, so that the merge's own time is seen
        digest(Origin(name, folder / name, None))
    digested = time.process_time()
    found = merge_checkpoints(parts, str(folder / "base"), out, how=hows[method])
    ended = time.process_time()
    return {
        "digests": digested - started,
        "merge": ended - digested,
        "lost_by_rounding": found.relative,
    }


def merge_adapters(folder: Path, out: Path) -> dict[str, float]:
    from peftkit import Delta

    one, two = (Delta.load(folder / f"adapter-{place}") for place in range(2))
    (one + 0.7 * two).save(out)
    return {}


def copy(folder: Path, out: Path) -> dict[str, float]:
    out.mkdir()
    source = folder / "base" / "model.safetensors"
    view = memoryview(bytearray(PIECE))
    started = time.process_time()
    with source.open("rb", buffering=0) as given, (out / "copy").open("wb", buffering=0) as file:
        while count := given.readinto(view):
            file.write(view[:count])
    return {"copy": time.process_time() - started, "bytes": float(source.stat().st_size)}


def main() -> None:
    what, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "copy":
        found = copy(folder, out)
    elif what == "lora":
        found = merge_adapters(folder, out)
    else:
        found = merge_dense(folder, out, what)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
