"""Bases in 4 or 8 bits: how they are loaded, what their layers hold, and how they are unpacked.

bitsandbytes 0.50 repacks a 4-bit weight in place at the first evaluation on a CPU with bfloat16
instructions, and takes a kernel without gradients for it from then on: training goes on, silently,
with gradients that reach the last block alone. So that layout is switched off in each layer, right
after every load. It is a faster kernel for inference that is given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit.base.dtype import DTYPES
from peftkit.base.locate import weight_files
from peftkit.base.targets import linear_layers
from peftkit.base.tasks import NEW_HEAD, model_class, new_parts
from peftkit.errors import InputError, RecipeError
from peftkit.recipe.sections.base import FOUR_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from peftkit.base.locate import Origin
    from peftkit.recipe.sections.base import BaseSection

BLOCK, OUTER_BLOCK = 64, 256
"""Numbers that share a scale, and scales that share one of theirs: what bitsandbytes takes."""
PACKED = ("Linear4bit", "Linear8bitLt")
"""Classes of bitsandbytes whose weight is packed; peft calls its own layers on them the same."""


def quantization(
    section: BaseSection, origin: Origin, config: Any, device: torch.device
) -> dict[str, Any]:
    """What `from_pretrained` takes beside the rest so that the layers are packed while they load.

    A new head trains, and stays as it is.

    Raises:
        RecipeError: bitsandbytes is not installed.
        InputError: the base was published quantized, and is to be quantized again.
    """
    packed_already = getattr(config, "quantization_config", None) is not None
    placed = {"device_map": {"": device}}
    if section.quantize == "none":
        return placed if packed_already else {}
    if packed_already:
        raise InputError(
            f"`{origin.name}` is quantized already, as its config.json says",
            hint="`--set base.quantize=none` takes it as it is",
        )
    require_bitsandbytes("base.quantize", section.quantize)
    return {"quantization_config": _settings(section, _new_head(section, config)), **placed}


def _new_head(section: BaseSection, config: Any) -> list[str] | None:
    """Names of the modules of a head that no base brings along; None where it has its own."""
    if section.task not in NEW_HEAD:
        return None
    with torch.device("meta"):
        return new_parts(model_class(section.task).from_config(config))


def _settings(section: BaseSection, kept: list[str] | None) -> Any:
    from transformers import BitsAndBytesConfig

    if section.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,  # in 4 bits as well, whatever it is called
        bnb_4bit_quant_type=section.quantize,
        bnb_4bit_use_double_quant=section.double_quant,
        bnb_4bit_compute_dtype=DTYPES[section.dtype],
    )


def require_bitsandbytes(key: str, asked: str, otherwise: str = "none") -> None:
    """Say so where what a recipe asks for needs bitsandbytes, and it is not there.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401 - what needs it takes it from there
    except ImportError:
        raise RecipeError(
            f"{key}: {asked} needs bitsandbytes, which is not installed",
            hint=f"`pip install 'peftkit[quantize]'`, or `--set {key}={otherwise}`",
        ) from None


def source_tensors(origin: Origin) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the base's files: in a packed weight a NaN can no longer be seen."""
    for path in weight_files(origin):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safe_open is not a mapping
                    yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as problem:
            raise InputError(
                f"`{origin.name}/{path.name}` cannot be read: {problem}",
                hint="its weights may be damaged; compare their sizes with the original's",
            ) from None


def keep_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place; see the top of this module."""
    for layer in packed_layers(model).values():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def place_nowhere(model: Any) -> None:
    """Take off the hooks with which accelerate moves inputs: all of the model is on one device."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model, recurse=True)
    model.__dict__.pop("hf_device_map", None)  # else peft would place the model once more


def is_packed(layer: Any) -> bool:
    """Whether a layer's weight is packed in fewer bits than its numbers have."""
    kinds = [kind for kind in type(layer).__mro__ if kind.__name__ in PACKED]
    return any(kind.__module__.startswith("bitsandbytes.") for kind in kinds)


def packed_layers(model: Any) -> dict[str, Any]:
    """Name and module of every packed layer, adapters in place."""
    return {name: module for name, module in model.named_modules() if is_packed(module)}


def plain_weight(layer: Any) -> Tensor:
    """A layer's weight as the numbers that it computes with, unpacked if it is packed."""
    weight = layer.weight
    if not is_packed(layer):
        return weight  # type: ignore[no-any-return]
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    unpacked: Tensor = dequantize_bnb_weight(weight, getattr(layer, "state", None))
    return unpacked.detach()


def requantize(weight: Tensor, layer: Any) -> Tensor:
    """What packing `weight` as the packed `layer` is would leave of it."""
    from bitsandbytes import functional

    if type(layer).__name__ == "Linear8bitLt":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        rounded: Tensor = functional.int8_vectorwise_dequant(codes, scales)
    else:
        state = layer.weight.quant_state
        packed, again = functional.quantize_4bit(
            weight.contiguous(),
            blocksize=state.blocksize,
            compress_statistics=state.nested,
            quant_type=state.quant_type,
        )
        rounded = functional.dequantize_4bit(packed, again)
    return rounded.to(weight.dtype)


def unpack(model: Any, dtype: torch.dtype | None = None) -> Any:
    """The model with plain linear layers in place of packed ones; `restore_classes` comes after.

    Args:
        model: adapters around its layers stay there.
        dtype: of all its weights; its own where none is given.
    """
    dtype = dtype or model.dtype
    for name, layer in packed_layers(model).items():
        model.set_submodule(name, _plain_layer(layer, dtype))
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.dtype = dtype
    for parameter in model.parameters():  # buffers, such as frequencies, keep their digits
        parameter.data = parameter.data.to(dtype)
    return model


def _plain_layer(layer: Any, dtype: torch.dtype) -> Any:
    plain: Any = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(plain_weight(layer).to(dtype), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    plain.source_cls = getattr(layer, "source_cls", nn.Linear)
    return plain.train(layer.training)


def restore_classes(model: Any) -> Any:
    """The model with its unpacked layers of the classes that it was written with.

    A GPT-2 keeps its weights the other way round than `nn.Linear` does: what is saved of it would
    not be what is loaded.
    """
    for name, layer in list(model.named_modules()):
        if layer.__dict__.pop("source_cls", None) is Conv1D:
            model.set_submodule(name, _turned_layer(layer))
    return model


def _turned_layer(layer: Any) -> Any:
    with torch.device("meta"):
        turned: Any = Conv1D(layer.out_features, layer.in_features)
    weight = layer.weight.data
    turned.weight = nn.Parameter(weight.t().contiguous(), requires_grad=False)
    bias = weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.data
    turned.bias = nn.Parameter(bias, requires_grad=False)
    return turned.train(layer.training)


def count_packed(model: Any) -> int:
    """How many numbers of a model, read off its layers, a quantized base would have packed."""
    return sum(int(layer.weight.numel()) for layer in linear_layers(model).values())


def packed_bytes(section: BaseSection) -> float:
    """What a packed number takes, its share of the scales included."""
    if section.quantize not in FOUR_BITS:
        return 1.0
    if section.double_quant:
        return 0.5 + 1 / BLOCK + 4 / (BLOCK * OUTER_BLOCK)
    return 0.5 + 4 / BLOCK
