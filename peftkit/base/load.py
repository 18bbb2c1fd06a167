"""Load the frozen model and its tokenizer from the folder that was located."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from peftkit.base.dtype import DTYPES, choose_dtype
from peftkit.base.finite import first_not_finite
from peftkit.base.locate import GENERATION, Origin, locate, read_json
from peftkit.base.quantize import (
    keep_layout,
    place_nowhere,
    quantization,
    source_tensors,
)
from peftkit.base.targets import learned_places
from peftkit.base.tasks import (
    model_class,
    note_missing,
    note_task,
    refuse_both_ways,
    refuse_two_stacks,
    settle_config,
)
from peftkit.base.tokens import grow, teach_tokens
from peftkit.base.upstream import quiet
from peftkit.errors import InputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
        return pad_id_of(self.tokenizer)

    @property
    def window(self) -> int | None:
        """Most positions the model was made for, where its config says so."""
        config = self.model.config.get_text_config()
        found = getattr(config, "max_position_embeddings", None)
        known = learned_places(self.model)
        return known or (found if isinstance(found, int) else None)


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
    tokenizer = load_tokenizer(origin)
    config = _task_config(section, origin, tokenizer)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)  # of what no checkpoint holds: all weights, or those of a new head
        if section.weights == "random":
            model = _built(section, origin, config, dtype=DTYPES[section.dtype]).to(device)
        else:
            model = _pretrained_model(section, origin, config, device)
    grow(model, teach_tokens(tokenizer, section.add_tokens))
    note_task(model, section.task, section.names)
    model.requires_grad_(requires_grad=False).eval()
    return Base(model=model, tokenizer=tokenizer, origin=origin)


def load_tokenizer(origin: Origin, added: Sequence[str] = ()) -> Any:
    """The base's own tokenizer, with `added` tokens."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(origin.folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise InputError(
            f"`{origin.name}` has no tokenizer that can be read: {_first_line(problem)}",
            hint="a model folder holds tokenizer.json and tokenizer_config.json beside config.json",
        ) from None
    teach_tokens(tokenizer, added)
    return tokenizer


def shape_of(section: BaseSection, origin: Origin) -> Any:
    """The model without memory for its weights, for planning."""
    with torch.device("meta"):
        model = _built(section, origin, _task_config(section, origin, None))
        if section.add_tokens:
            grow(model, teach_tokens(load_tokenizer(origin), section.add_tokens))
    note_task(model, section.task, section.names)
    return model


def pad_id_of(tokenizer: Any) -> int:
    """An id for positions that nothing looks at."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _task_config(section: BaseSection, origin: Origin, tokenizer: Any | None) -> Any:
    config = _config(origin)
    refuse_both_ways(config, section.task, origin.name)
    refuse_two_stacks(config, section.task, origin.name)
    pad_id = 0 if tokenizer is None else pad_id_of(tokenizer)
    return settle_config(config, section.task, section.names, pad_id)


def _built(section: BaseSection, origin: Origin, config: Any, **how: Any) -> Any:
    try:
        return model_class(section.task).from_config(config, **how)
    except ValueError:
        raise _cannot(section, origin, config) from None


def _cannot(section: BaseSection, origin: Origin, config: Any) -> InputError:
    return InputError(
        f"base.task: transformers has no {section.task} model for `{origin.name}`, "
        f"a {config.model_type} base",
        hint="a decoder does causal-lm, an encoder masked-lm, T5 and its kin seq2seq; most do the "
        "tasks with labels",
    )


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


def _pretrained_model(
    section: BaseSection, origin: Origin, config: Any, device: torch.device
) -> Any:
    kind = model_class(section.task)
    if type(config) not in kind._model_mapping:
        raise _cannot(section, origin, config)
    settings = quantization(section, origin, config, device)
    if section.quantize != "none":
        _refuse_not_finite(origin, source_tensors(origin))
    try:
        loaded: Any = kind.from_pretrained(
            origin.folder,
            config=config,
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
    note_missing(model, report["missing_keys"], section.task, origin.name)
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


def stop_ids(origin: Origin, tokenizer: Any, named: Sequence[str] = ()) -> frozenset[int]:
    """Ids at which generation ends: the tokenizer's own, those the base's folder names, and more.

    Raises:
        RecipeError: one of `named` is no token of the vocabulary.
    """
    vocabulary = tokenizer.get_vocab() if named else {}
    strange = next((token for token in named if token not in vocabulary), None)
    if strange is not None:
        raise RecipeError(
            f"base.stop_tokens: `{strange}` is no token of this base",
            hint="`peftkit preview RECIPE` shows the tokens of a row",
        )
    own: Any = tokenizer.eos_token_id
    listed: Any = None
    if (origin.folder / GENERATION).exists():
        listed = read_json(origin, GENERATION).get("eos_token_id")
    found = [*(listed if isinstance(listed, list) else [listed]), own]
    found += [vocabulary[token] for token in named]
    return frozenset(int(token) for token in found if token is not None)
