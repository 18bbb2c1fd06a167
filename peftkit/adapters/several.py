"""Several adapters on one base: which of them act, switched without moving a number.

peft lets what acts train and freezes the rest whenever it switches. Here a switch decides nothing
but what acts: a parameter that trained before trains afterwards, and no other.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from safetensors.torch import load_file

from peftkit.adapters.head import read_heads
from peftkit.adapters.in_place import putting_back
from peftkit.adapters.task_fit import heads_to_pass, left_behind, shared_shapes
from peftkit.adapters.tokens import token_rows
from peftkit.adapters.verify import CONFIG_FILE, WEIGHTS_FILE, verify_adapter
from peftkit.base.upstream import quiet
from peftkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TOGETHER = ("LORA", "IA3", "OFT", "BOTTLENECK")
"""Kinds of which several can act at once, one after the other on the same layers."""
BASE = "__base__"
"""peft's name, in a batch, for rows without an adapter."""


def kind_of(model: PeftModel) -> str:
    """The PEFT type of the adapters that a model has; they are all of one."""
    config: Any = next(iter(model.peft_config.values()))
    return str(config.peft_type.value)


def acting(model: Any) -> tuple[str, ...]:
    """The adapters that act now, in the order in which they do."""
    if not isinstance(model, PeftModel):
        return ()
    if model.active_peft_config.is_prompt_learning:
        return (model.active_adapter,)
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    first = next(layers, None)
    return () if first is None or first.disable_adapters else tuple(model.active_adapters)


def load_beside(model: Any, folder: Path, name: str, *, base: str | None = None) -> None:
    """Put one more adapter of the same kind on a model that has some; it does not act yet.

    Raises:
        InputError: it must not be loaded, or is of another kind.
    """
    if not isinstance(model, PeftModel):
        raise InputError(f"`{folder}` cannot be added: the first adapter changes the base itself")
    unused = left_behind(model, folder)
    facts = verify_adapter(folder, shared_shapes(model, folder), base=base, unused=unused)
    kind = kind_of(model)
    if facts.peft_type != kind:
        raise InputError(
            f"`{folder}` cannot be added: it is of kind {facts.peft_type}, the first of {kind}"
        )
    if _has_rows(model) or token_rows(folder):
        which = "it" if token_rows(folder) else "the first"
        raise InputError(f"`{folder}` cannot be added: {which} brings rows of tokens of its own")
    _refuse_another_place(next(iter(model.peft_config.values())), folder)
    before, flags = acting(model), _flags(model)
    with quiet():
        try:
            _put_beside(model, folder, name)
        except (
            ValueError
        ) as problem:  # such as random matrices that kinds share and two disagree on
            reason = str(problem).strip().partition("\n")[0]
            raise InputError(f"`{folder}` cannot be put beside the first: {reason}") from None
    read_heads(model, folder / WEIGHTS_FILE, name)
    own = {id(parameter) for parameter, _ in flags}
    fresh = [(p, False) for p in model.parameters() if id(p) not in own]
    _switch(model, before)
    _restore([*flags, *fresh])


def _has_rows(model: PeftModel) -> bool:
    """Whether an adapter trained rows of an embedding, beside which peft loads only its like."""
    return any(isinstance(module, TrainableTokensWrapper) for module in model.modules())


def _put_beside(model: Any, folder: Path, name: str) -> None:
    """Load it as peft does, but for one that was trained on text beside one that has a head.

    peft's classes for tasks expect the head of their task in every adapter.
    """
    config: Any = PeftConfig.from_pretrained(str(folder))
    if config.task_type == model.active_peft_config.task_type or config.modules_to_save:
        model.load_adapter(str(folder), adapter_name=name)
        return
    config.inference_mode = True
    if heads := heads_to_pass(model, folder):
        config.exclude_modules = heads
    PeftModel.add_adapter(model, name, config)
    weights = load_file(folder / WEIGHTS_FILE)
    set_peft_model_state_dict(model, weights, adapter_name=name)


def _refuse_another_place(first: Any, folder: Path) -> None:
    """Say that one adapter wraps what the other goes into: peft would leave it out in silence."""
    own = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("variant")
    both = {own, getattr(first, "variant", None)}
    if "parallel" in both and len(both) > 1:
        raise InputError(
            f"`{folder}` cannot be added: one of the two adapters stands beside the MLP and the "
            "other after it"
        )


def use(model: Any, names: Sequence[str]) -> None:
    """Let these adapters act from now on, in this order, and no others.

    Raises:
        InputError: one is not there, or several of their kind cannot act at once.
    """
    check_names(model, names)
    if not names:
        raise InputError("no adapter is named", hint="`using(model, ())` is the base for a while")
    flags = _flags(model)
    _switch(model, names)
    model.active_adapter = names[-1]
    _restore(flags)


@contextmanager
def using(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Inside, these adapters act and no others, without any the base alone; then all is as before.

    A model whose own parameters trained has no names, and is the base it was inside.

    Raises:
        InputError: one is not there, or several of their kind cannot act at once.
    """
    if not isinstance(model, PeftModel) and not names:
        with putting_back(model):
            yield
        return
    check_names(model, names)
    if model.active_peft_config.is_prompt_learning and not names:
        with _passed_by(model):
            yield
        return
    before, flags = acting(model), _flags(model)
    try:
        _switch(model, names)
        _restore(flags)
        yield
    finally:
        _switch(model, before)
        _restore(flags)


@contextmanager
def _passed_by(model: Any) -> Iterator[None]:
    """Inside, nothing stands before the text, and a head is what it was before it trained.

    peft does the first of it, but only for models that generate.
    """
    swapped = [name for name in ("forward", "prepare_inputs_for_generation") if _has(model, name)]
    heads = [part for part in model.modules() if isinstance(part, AuxiliaryTrainingWrapper)]
    for name in swapped:
        setattr(model, name, getattr(model.base_model, name))
    for head in heads:
        head.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for name in swapped:
            delattr(model, name)
        for head in heads:
            head.enable_adapters(enabled=True)


def _has(model: Any, name: str) -> bool:
    return hasattr(model.base_model, name)


def check_names(model: Any, names: Sequence[str]) -> None:
    """Refuse names that no adapter has, and more of them at once than the kind allows.

    Raises:
        InputError: with the names that there are.
    """
    known = list(model.peft_config) if isinstance(model, PeftModel) else []
    if strange := [name for name in names if name not in known]:
        there = ", ".join(f"`{name}`" for name in known) or "none"
        raise InputError(f"there is no adapter `{strange[0]}`; there are: {there}")
    heads = [name for name in names if getattr(model.peft_config[name], "modules_to_save", None)]
    if len(heads) > 1:
        raise InputError(
            f"`{heads[0]}` and `{heads[1]}` each bring a head along, of which one can act",
            hint="give one of them",
        )
    if len(names) > 1 and kind_of(model) not in TOGETHER:
        raise InputError(
            f"adapters of kind {kind_of(model)} cannot act at once: {', '.join(names)}",
            hint=f"those of kind {', '.join(TOGETHER)} can; of others one at a time acts",
        )


def refuse_mixing(model: Any, rows: Sequence[Sequence[str]]) -> str | None:
    """Why rows with these adapters cannot share one batch; None where they can."""
    if not isinstance(model, PeftModel):
        return "the base itself trained"
    if any(len(names) > 1 for names in rows):
        return "a row has several adapters"
    wanted = {name for names in rows for name in names}
    for name in sorted(wanted):
        config: Any = model.peft_config[name]
        if config.peft_type.value != "LORA":
            return f"peft mixes LoRA alone, not {config.peft_type.value}"
        for key in ("use_dora", "trainable_token_indices", "target_parameters"):
            if getattr(config, key, None):
                return f"peft does not mix LoRA with `{key}`"
    return None


def _switch(model: Any, names: Sequence[str]) -> None:
    """Let exactly these act; what peft does to `requires_grad` on the way is for others to mend."""
    if model.active_peft_config.is_prompt_learning:
        model.set_adapter(names[0])
        return
    tuner = model.base_model
    if not names:
        tuner.disable_adapter_layers()
        return
    if not acting(model):
        tuner.enable_adapter_layers()
    tuner.set_adapter(list(names))


def _flags(model: Any) -> list[tuple[Any, bool]]:
    return [(parameter, parameter.requires_grad) for parameter in model.parameters()]


def _restore(flags: Sequence[tuple[Any, bool]]) -> None:
    for parameter, trains in flags:
        parameter.requires_grad_(trains)
