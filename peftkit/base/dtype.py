"""In which number format the frozen base is held: its own wherever this machine is fast in it.

A frozen weight is never updated, so nothing is gained by holding it in more digits than it was
published in. What may be lost is speed, on a CPU without bfloat16 instructions: that is measured,
by CPU time and not by the clock, so that a neighbor on the machine does not sway it.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from peftkit.recipe.sections.base import BaseSection

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
WIDTH = 256
"""Hidden size from which bfloat16 can pay on a CPU: below it, casts cost what products save."""
WORTH_IT = 1.5
"""How many times faster its products must be; with the instructions it is 2 to 5 times."""
ROWS, REPEATS = 512, 5


def choose_dtype(
    section: BaseSection, device: torch.device, config: Any, *, frozen: bool = True
) -> tuple[str, str]:
    """The name of the base's number format, and why it is that one.

    Args:
        section: the recipe's, where a format may be named.
        device: what the base will run on.
        config: of the base, as transformers reads it.
        frozen: whether its own weights stay as they are; small updates are lost in 16 bits.

    Raises:
        RecipeError: weights that train are to be held in 16 bits.
    """
    if section.dtype not in ("auto", "float32") and not frozen:
        raise RecipeError(
            f"base.dtype: {section.dtype} is too coarse for weights that train: "
            "most updates would be rounded away",
            hint="`--set base.dtype=auto` holds this base in float32",
        )
    if section.dtype != "auto":
        return section.dtype, "`base.dtype`"
    if not frozen:
        return "float32", "its own weights train"
    if device.type == "cuda":
        known = torch.cuda.is_bf16_supported()
        return ("bfloat16", "the GPU has it") if known else ("float32", "the GPU lacks bfloat16")
    own = str(config.dtype or "float32").removeprefix("torch.")
    if section.quantize != "none":  # its digits are given up already
        own = "bfloat16"
    return _choose_on_cpu(own, config)


def _choose_on_cpu(own: str, config: Any) -> tuple[str, str]:
    width = int(config.get_text_config().hidden_size)
    if own != "bfloat16":
        return "float32", f"the base was published in {own}, and on a CPU float32 loses nothing"
    if width < WIDTH:
        return "float32", f"at a width of {width} bfloat16 does not pay on a CPU"
    gain = measure_gain(width)
    chosen = "bfloat16" if gain >= WORTH_IT else "float32"
    return chosen, f"this CPU multiplies {gain:.1f} × as fast in bfloat16"


@lru_cache(maxsize=4)
def measure_gain(width: int) -> float:
    """How many times as fast one CPU thread multiplies a layer of `width` in bfloat16."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain, short = (_time_product(width, dtype) for dtype in (torch.float32, torch.bfloat16))
    finally:
        torch.set_num_threads(threads)
    return plain / short


def _time_product(width: int, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, width, generator=generator).to(dtype)
    weight = torch.randn(width, width, generator=generator).to(dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(REPEATS + 1):  # the first one warms up
            started = time.thread_time()
            linear(inputs, weight)
            best = min(best, time.thread_time() - started)
    return best
