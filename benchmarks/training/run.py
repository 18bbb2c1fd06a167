"""How fast does a LoRA train on one CPU thread, next to plain peft and to TRL?

python benchmarks/training/run.py --trl FOLDER
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from compare import ARMS, TRL, Settings, compare
from record import write_result
from shapes import SHAPES
from trl_arm import find_trl

from peftkit.base.dtype import choose_dtype
from peftkit.recipe.sections.base import BaseSection

HERE = Path(__file__).parent
DENSITIES = (1.0, 0.5, 0.25)


def main() -> None:
    """Compare what the command line names, and write the result."""
    given = read_arguments()
    torch.set_num_threads(1)
    problem = find_trl(given.trl)
    left_out = dict.fromkeys(TRL, problem) if problem else {}
    chosen = tuple(name for name in given.arms if name not in left_out)
    settings = Settings(chosen, tuple(given.densities), given.docs, given.rounds)
    model = SHAPES["M"].config
    model.dtype = "bfloat16"
    auto = choose_dtype(BaseSection(model="builtin:tiny"), torch.device("cpu"), model)
    facts = {"settings": asdict(settings), "left_out": left_out, "dtype_of_a_run": auto}
    if not problem:
        facts["trl"] = version("trl")
    given.into.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        # Cold means cold: no kernel that an earlier run compiled is at hand, and no state.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"
        os.environ["PEFTKIT_CACHE"] = f"{folder}/kept"
        for shape in given.shape:
            for found in compare(shape, settings, Path(folder)):
                shapes[shape] = found
                path = write_result(given.into, facts | {"shapes": shapes})  # so far
    print(path)


def read_arguments() -> argparse.Namespace:
    """What to compare; by default everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl", type=Path, help="the folder that `pip install --target` filled")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM")
    parser.add_argument("--densities", nargs="+", type=float, default=DENSITIES)
    parser.add_argument("--docs", type=int, default=32, help="documents of an epoch")
    parser.add_argument("--rounds", type=int, default=5, help="warm epochs of each arm")
    parser.add_argument("--into", type=Path, default=HERE, help="where `results/` is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
