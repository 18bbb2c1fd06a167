"""What a recipe says about a quantized base: `qlora` spelled out, and what cannot work refused.

A packed weight cannot train and cannot be rewritten without being rounded again, so methods that
do either are told so before anything is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftkit.recipe.sections.base import FOUR_BITS
from peftkit.recipe.sections.section import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peftkit.recipe.schema import Recipe
    from peftkit.recipe.sections.stages import StageSection

SHORTHAND, METHOD, QUANTIZED = "qlora", "lora", "nf4"
WHOLE = ("top", "full")
"""Methods that train whole matrices of the base; those that train norms or biases alone may go on
a quantized base, whose norms and biases stay as they are."""
EXACT = ("pissa", "olora")
"""Variants of LoRA that start from the base's weights as they were published."""

Place = tuple[str | int, ...]


def spell_out(values: dict[str, Any], at: Place = ()) -> dict[str, Any]:
    """What a recipe says, with `adapter.method: qlora` said as what it is short for.

    `at` is where in a recipe these values stand.

    Raises:
        ValidationError: the base is said to be something else.
    """
    adapter, base = _section(values, "adapter"), _section(values, "base")
    if adapter.get("method") != SHORTHAND:
        return values
    said = base.get("quantize", QUANTIZED)
    if said != QUANTIZED:
        why = f"`adapter.method: qlora` is short for `lora` on `{QUANTIZED}`, and this says"
        instead = f"; `adapter.method: lora` goes with `{said}`"
        raise refused({(*at, "base", "quantize"): f"{why} `{said}`{instead}"})
    whole = {**base, "quantize": QUANTIZED}
    return {**values, "base": whole, "adapter": {**adapter, "method": METHOD}}


def refuse_what_cannot_work(recipe: Recipe | StageSection) -> None:
    """Say everything that the base's quantization rules out.

    Raises:
        ValidationError: a key of `base` or `adapter` cannot go with another.
    """
    if problems := dict(_problems(recipe)):
        raise refused(problems)


def _problems(recipe: Recipe | StageSection) -> Iterator[tuple[Place, str]]:
    base, adapter = recipe.base, recipe.adapter
    how = f"`base.quantize: {base.quantize}`"
    if not base.double_quant and base.quantize not in FOUR_BITS:
        yield ("base", "double_quant"), f"only bases in 4 bits have it, and this says {how}"
    variant = getattr(adapter, "variant", None)
    if base.quantize == "none":
        if variant == "loftq":
            what = "`loftq` corrects what quantizing a base rounds away, and this one is not"
            yield ("adapter", "variant"), f"{what}; it goes with `base.quantize: nf4`"
        return
    if base.weights == "random":
        yield ("base", "weights"), f"random weights would all have to train, and {how} freezes them"
    if adapter.method in WHOLE:
        what = f"`{adapter.method}` trains the base's own matrices, which {how} freezes"
        yield ("adapter", "method"), f"{what}; `lora` trains beside them"
    if variant in EXACT:
        what = f"`{variant}` starts from the base's exact weights, which {how} rounds"
        yield ("adapter", "variant"), f"{what}; `plain` and `loftq` go with it"
    if variant == "dora" and base.quantize == "int8":
        what = f"`dora` reads the base's weights, and peft loses their scales with {how}"
        yield ("adapter", "variant"), f"{what}; `base.quantize: nf4` goes with it"


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}
