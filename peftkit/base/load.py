"""Load the frozen model and its tokenizer from the folder that was located."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from peftkit.base.dtype import DTYPES, choose_dtype
from peftkit.base.finite import first_not_finite
from peftkit.base.locate import GENERATION, Origin, locate, read_json
from peftkit.base.quantize import (
    keep_layout,
    place_nowhere,
    quantization,
    source_tensors,
)
from peftkit.base.upstream import quiet
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from peftkit.recipe.sections.base import BaseSection


@dataclass(frozen=True, slots=True)
class Base:
    """A frozen model with its tokenizer and where both came from."""

    model: Any
    tokenizer: Any
    origin: Origin

    @property
    def pad_id(self) -> int:
        """An id for positions that nothing looks at."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    @property
    def window(self) -> int | None:
        """Most positions the model was made for, where its config says so."""
        config = self.model.config.get_text_config()
        found = getattr(config, "max_position_embeddings", None)
        return found if isinstance(found, int) else None


def settle_dtype(
    section: BaseSection, origin: Origin, device: torch.device, *, frozen: bool = True
) -> tuple[BaseSection, str]:
    """The section with its number format settled, and why it is that one."""
    name, why = choose_dtype(section, device, _config(origin), frozen=frozen)
    if section.quantize != "none":
        why = f"{why}; its linear layers are packed in {section.quantize} and compute in {name}"
    return section.model_copy(update={"dtype": name}), why


def load_base(
    section: BaseSection, *, device: torch.device, seed: int = 0, origin: Origin | None = None
) -> Base:
    """What the recipe's `base` section names, frozen, in evaluation mode, on its device."""
    origin = origin or locate(section)
    if section.dtype == "auto":
        section, _ = settle_dtype(section, origin, device)
    dtype = DTYPES[section.dtype]
    with quiet():
        if section.weights == "random":
            model = _random_model(origin, dtype, seed).to(device)
        else:
            model = _pretrained_model(origin, section, device)
    model.requires_grad_(requires_grad=False).eval()
    return Base(model=model, tokenizer=load_tokenizer(origin), origin=origin)


def load_tokenizer(origin: Origin) -> Any:
    """The base's own tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(origin.folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise InputError(
            f"`{origin.name}` has no tokenizer that can be read: {_first_line(problem)}",
            hint="a model folder holds tokenizer.json and tokenizer_config.json beside config.json",
        ) from None


def shape_of(origin: Origin) -> Any:
    """The model without memory for its weights, for planning."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(_config(origin))


def _config(origin: Origin) -> Any:
    try:
        return AutoConfig.from_pretrained(origin.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as problem:
        raise InputError(
            f"`{origin.name}/config.json` names no model this version of transformers knows: "
            f"{_first_line(problem)}"
        ) from None
    except StrictDataclassError as problem:
        reason = " ".join(str(problem).split())
        raise InputError(f"`{origin.name}/config.json` makes no model: {reason}") from None


def _random_model(origin: Origin, dtype: torch.dtype, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(_config(origin), dtype=dtype)


def _pretrained_model(origin: Origin, section: BaseSection, device: torch.device) -> Any:
    settings = quantization(section, origin, _config(origin), device)
    if section.quantize != "none":
        _refuse_not_finite(origin, source_tensors(origin))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            origin.folder,
            dtype=DTYPES[section.dtype],
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as problem:
        raise InputError(
            f"`{origin.name}` cannot be loaded: {_first_line(problem)}",
            hint="its weights may be damaged; compare their sizes with the original's",
        ) from None
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"`{origin.name}` lacks {len(missing)} tensors of its own model, e.g. `{missing[0]}`",
            hint="with made-up values in their place every result would be wrong",
        )
    _refuse_not_finite(origin, model.named_parameters())
    keep_layout(model)
    if settings:
        place_nowhere(model)
        return model
    return model.to(device)


def _refuse_not_finite(origin: Origin, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    if name := first_not_finite(tensors):
        raise InputError(
            f"`{origin.name}` holds numbers that are not finite, e.g. in `{name}`",
            hint="its weights may be damaged; compare their checksums with the original's",
        )


def _first_line(problem: BaseException) -> str:
    return str(problem).strip().splitlines()[0][:200] if str(problem).strip() else repr(problem)


def stop_ids(origin: Origin, tokenizer: Any) -> frozenset[int]:
    """Ids at which generation ends: the tokenizer's own and those the base's folder names."""
    named: Any = tokenizer.eos_token_id
    listed: Any = None
    if (origin.folder / GENERATION).exists():
        listed = read_json(origin, GENERATION).get("eos_token_id")
    both = [*(listed if isinstance(listed, list) else [listed]), named]
    return frozenset(int(token) for token in both if token is not None)
