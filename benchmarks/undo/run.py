"""Folds random adapters into stories260k, takes them back, and weighs what that needed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

sys.path.append(str(Path(__file__).parents[1]))
from record import write_result

from peftkit import Delta
from peftkit.merge.undo import UNDO_FILE, undo_fold

HERE = Path(__file__).parent
BASE = HERE.parents[2] / "shared" / "material" / "stories260k-hf"
SHARES = (0.01, 0.1)
SEEDS = (0, 1, 2)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WEIGHTS = "model.safetensors"


def main() -> None:
    """Write the result."""
    rows = []
    for dtype in DTYPES:
        for share in SHARES:
            for seed in SEEDS:
                with tempfile.TemporaryDirectory() as place:
                    rows.append(measure(Path(place), dtype, share, seed))
                print(rows[-1])
    print(write_result(HERE, {"rows": rows}))


def measure(place: Path, dtype: torch.dtype, share: float, seed: int) -> dict[str, Any]:
    """One fold, and its way back."""
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=dtype)
    base.save_pretrained(place / "base")
    before = (place / "base" / WEIGHTS).read_bytes()
    change = make_change(place / "adapter", seed)
    norms = [base.get_submodule(name).weight.double().square().sum() for name in change.low]
    change *= share * float(sum(norms)) ** 0.5 / change.norm
    found = change.fold(place / "base", place / "folded")
    undo_fold(place / "folded", place / "again")
    with safe_open(place / "folded" / UNDO_FILE, framework="pt") as kept:
        names = [name for name in kept.keys() if name.endswith("/difference")]  # noqa: SIM118
        differences = sum(kept.get_tensor(name).numel() for name in names)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "share": share,
        "seed": seed,
        "identical": (place / "again" / WEIGHTS).read_bytes() == before,
        "moved": (place / "folded" / WEIGHTS).read_bytes() != before,
        "lost": found.relative,
        "base_bytes": len(before),
        "undo_bytes": found.undo_bytes,
        "differences": differences / len(before),
    }


def make_change(folder: Path, seed: int) -> Delta:
    """A random adapter."""
    config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return Delta.load(folder)


if __name__ == "__main__":
    main()
