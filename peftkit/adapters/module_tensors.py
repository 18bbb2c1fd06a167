"""The tensors that one adapted module has in an adapter's file, by the end of their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    Config = Mapping[str, Any]

PREFIX = "base_model.model."
Shape = tuple[int | None, ...]


class Upright(tuple[int, ...]):
    """Shape of a weight that is known to lie as (out, in), as a linear layer's does."""

    __slots__ = ()


class Alone(tuple[int, ...]):
    """Shape of a parameter that is no layer's weight, such as fused experts; known by its name."""

    __slots__ = ()


class Turned(tuple[int, ...]):
    """Shape of a weight that is known to lie as (in, out), as GPT-2's layers do."""

    __slots__ = ()


def ends_in(module: str, names: Collection[str] | str | None) -> bool:
    """Whether a module is called one of these, or that behind a dot."""
    if not names:
        return False
    if isinstance(names, str):
        return module == names
    parts = module.split(".")
    known = set(names)
    return any(".".join(parts[start:]) in known for start in range(len(parts)))


def _out_in(shape: tuple[int, ...] | None, config: Config) -> tuple[int | None, int | None]:
    """Outputs and inputs of a layer; GPT-2's are stored the other way round.

    Where layers of both kinds are adapted, what the configuration says is of the last one alone.
    """
    if shape is None:
        return None, None
    if isinstance(shape, Turned) or (
        config.get("fan_in_fan_out") and not isinstance(shape, Upright)
    ):
        return shape[-1], shape[0]
    return shape[0], shape[-1]


def tensors_of(
    config: Config,
    module: str,
    shape: tuple[int, ...] | None,
    present: Mapping[str, tuple[int, ...]],
) -> dict[str, Shape]:
    """What one adapted module has in the file, by the end of the name."""
    out, into = _out_in(shape, config)
    here = f"{PREFIX}{module}"
    match config["peft_type"]:
        case "LORA":
            embedding = f"{here}.lora_embedding_A" in present
            return _lora(config, module, shape, embedding=embedding)
        case "IA3":
            inner = ends_in(module, config.get("feedforward_modules"))
            return {".ia3_l": (1, into) if inner else (out, 1)}
        case "VERA":
            return {".vera_lambda_b": (out,), ".vera_lambda_d": (config["r"],)}
        case "OFT":
            return {".oft_R.weight": _rotations(config, into)}
        case "LN_TUNING":
            endings = [".ln_tuning_layers.weight", ".ln_tuning_layers.bias"]
            return {end: (out,) for end in endings if end == endings[0] or here + end in present}
        case _:
            return _bottleneck(config, (out, into), present.get(f"{here}.bottleneck_down.bias"))


def _lora(
    config: Config, module: str, shape: tuple[int, ...] | None, *, embedding: bool
) -> dict[str, Shape]:
    rank = rank_of(config, module)
    if embedding:
        rows, width = shape or (None, None)
        return {".lora_embedding_A": (rank, rows), ".lora_embedding_B": (width, rank)}
    out, into = _out_in(shape, config)
    tensors: dict[str, Shape] = {".lora_A.weight": (rank, into), ".lora_B.weight": (out, rank)}
    if config.get("lora_bias"):
        tensors[".lora_B.bias"] = (out,)
    if config.get("use_dora"):
        tensors[".lora_magnitude_vector"] = (out,)
    return tensors


def rank_of(config: Config, module: str) -> int:
    """The rank of one LoRA module: the first pattern that fits its name, or `r`."""
    return int(_fitting(config.get("rank_pattern"), module, config["r"]))


def alpha_of(config: Config, module: str) -> float:
    """The alpha of one LoRA module: the first pattern that fits its name, or `lora_alpha`."""
    return float(_fitting(config.get("alpha_pattern"), module, config["lora_alpha"]))


def _fitting(pattern: Mapping[str, float] | None, module: str, otherwise: float) -> float:
    for name, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({name})$", module):
            return value
    return otherwise


def _rotations(config: Config, into: int | None) -> Shape:
    """Blocks, and free numbers a block; peft rounds a block size that does not divide."""
    block = config.get("oft_block_size") or 0
    if not block and into is not None and config.get("r"):
        block = into // config["r"]
    if not block or into is None or into % block:
        return (None, None)
    return (1 if config.get("block_share") else into // block, block * (block - 1) // 2)


def _bottleneck(
    config: Config, size: tuple[int | None, int | None], bias: tuple[int, ...] | None
) -> dict[str, Shape]:
    out, into = size
    inner: int | None = config.get("bottleneck_size")
    if inner is None and out is not None:
        inner = max(1, out // (config.get("reduction_factor") or 16))
    if inner is None and bias is not None:
        inner = bias[0]
    return {
        ".bottleneck_down.weight": (inner, into if config.get("variant") == "parallel" else out),
        ".bottleneck_down.bias": (inner,),
        ".bottleneck_up.weight": (out, inner),
        ".bottleneck_up.bias": (out,),
    }
