"""How much memory does a LoRA step take at a large vocabulary, next to TRL and to plain peft?

python benchmarks/memory/run.py --trl FOLDER
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "training")]
ARMS = ("trl default", "trl tuned", "plain bfloat16 packed", "peftkit", "peftkit with all logits")
VOCABULARY = 131_072
DOCUMENTS, UPDATES, ROUNDS = 16, 2, 3


def main() -> None:
    """Every arm in a process of its own, in turns."""
    given = read_arguments()
    if given.arm:
        print(json.dumps(measure(given.arm, given.trl)))
        return
    from trl_arm import find_trl

    problem = find_trl(given.trl)
    arms = [arm for arm in ARMS if not (problem and arm.startswith("trl"))]
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for _ in range(given.rounds):
        for arm in arms:
            found[arm].append(_measure_apart(arm, given.trl))
    from record import write_result

    settings = {"vocabulary": VOCABULARY, "documents": DOCUMENTS, "updates": UPDATES}
    facts = {"settings": settings, "left_out": problem, "arms": found}
    if not problem:
        facts["trl"] = version("trl")
    path = write_result(HERE, facts)
    print(path)
    for arm, rounds in found.items():
        peak = statistics.median(each["peak_bytes"] for each in rounds) / 2**20
        own = statistics.median(each["peak_bytes"] - each["imports_bytes"] for each in rounds)
        print(f"{arm:26s} {peak:7.0f} MiB, {own / 2**20:7.0f} above imports")


def measure(arm: str, trl: Path | None) -> dict[str, Any]:
    """Peak memory of this process after a few updates by one arm, and after its imports alone."""
    import torch
    from compare import list_arms
    from documents import draw_documents
    from shapes import SHAPES, Bases
    from trl_arm import find_trl

    torch.set_num_threads(1)
    find_trl(trl)
    if arm.startswith("trl"):
        import trl as _imported  # noqa: F401 - what it takes to be there
    imports = _peak()
    shape = replace(SHAPES["M"], vocabulary=VOCABULARY)
    documents = draw_documents(DOCUMENTS, VOCABULARY, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        made = list_arms(Bases(shape), Path(folder), documents)[arm]()
        loaded = _peak()
        losses = [made.step(documents).loss for _ in range(UPDATES)]
    return {
        "imports_bytes": imports,
        "loaded_bytes": loaded,
        "peak_bytes": _peak(),
        "losses": losses,
    }


def _measure_apart(arm: str, trl: Path | None) -> dict[str, Any]:
    more = ["--trl", str(trl)] if trl else []
    command = [sys.executable, __file__, "--arm", arm, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl", type=Path, help="the folder that `pip install --target` filled")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--arm", choices=ARMS, help="only this one, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
