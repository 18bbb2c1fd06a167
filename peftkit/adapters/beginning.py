"""How an adapter begins from an earlier one: with that in the base's weights, or as that itself.

Either may be for another task: what is left of the earlier adapter then is what it changed of the
layers that both tasks share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from peftkit.adapters.attach import trainable
from peftkit.adapters.expected import PROMPT_TYPES
from peftkit.adapters.fold import fold
from peftkit.adapters.in_place import forget_before, keep_before
from peftkit.adapters.store import load_adapter
from peftkit.adapters.task_file import config_of
from peftkit.adapters.verify import DELTA_FILE, WEIGHTS_FILE
from peftkit.base.quantize import packed_layers
from peftkit.base.tasks import new_parts
from peftkit.base.upstream import quiet
from peftkit.errors import InputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

KINDS = {"prefix": "PREFIX_TUNING", "prompt": "PROMPT_TUNING"}
"""What peft calls methods by another name than ours."""
MEANING = (
    *("lora_alpha", "alpha_pattern", "use_rslora", "use_dora"),
    *("projection_prng_key", "coft", "eps", "use_cayley_neumann", "num_cayley_neumann_terms"),
    *("non_linearity", "variant", "scaling"),
)
"""Keys of a configuration by which the same numbers do something else."""
OTHERWISE = "`--set adapter.under_as=stacked` or `folded` puts a new adapter on it"


def refuse_to_fold(model: Any, kind: str, name: str) -> None:
    """Say what no weight of a base can hold, before anything is loaded.

    Raises:
        RecipeError: the adapter, or the base, is of such a kind.
    """
    if kind in (*PROMPT_TYPES, "BOTTLENECK"):
        raise RecipeError(
            f"adapter.under_as: no weight of the base can do what `{name}` does, of kind {kind}",
            hint="`--set adapter.under_as=continued` trains it on",
        )
    if packed_layers(model):
        raise RecipeError(
            "adapter.under_as: the base is packed in 4 or 8 bits, and would be rounded once more",
            hint="`--set adapter.under_as=stacked` leaves its weights as they are",
        )


def refuse_another_kind(method: str, kind: str, name: str) -> None:
    """Say that an adapter goes on as the kind that it is.

    Raises:
        RecipeError: the new one is of another.
    """
    if KINDS.get(method, method.upper()) != kind:
        raise RecipeError(
            f"adapter.method: `{name}` is of kind {kind}, and cannot go on training as {method}",
            hint=OTHERWISE,
        )


def fold_in(model: Any, folder: Path, *, base: str) -> Any:
    """The plain model with an adapter in its weights, as if it had always been so."""
    loaded = load_adapter(model, folder, base=base)
    plain = fold(loaded) if isinstance(loaded, PeftModel) else loaded
    forget_before(plain)
    return plain


def go_on_as(adapted: Any, folder: Path) -> None:
    """Give what trains the numbers of an earlier adapter; heads of another task begin anew.

    Raises:
        InputError: the two are not of one shape, or do not mean the same by their numbers.
    """
    if isinstance(adapted, PeftModel):
        _refuse_another_meaning(vars(adapted.peft_config["default"]), folder)
        weights = load_file(folder / WEIGHTS_FILE)
        with quiet():
            own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        _refuse_another_shape(own, weights, adapted.get_base_model(), folder)
        with quiet():
            known = {name: weights.get(name, tensor) for name, tensor in own.items()}
            set_peft_model_state_dict(adapted, known)
    else:
        weights, own = load_file(folder / DELTA_FILE), trainable(adapted)
        _refuse_another_shape(own, weights, adapted, folder)
        adapted.load_state_dict({n: t for n, t in weights.items() if n in own}, strict=False)
    forget_before(adapted)
    keep_before(adapted, trainable(adapted))


def _refuse_another_meaning(new: Mapping[str, Any], folder: Path) -> None:
    """Say where the earlier numbers would do something else under the new configuration."""
    old = config_of(folder)
    for key in MEANING:
        if key in new and key in old and new[key] != old[key]:
            raise InputError(
                f"`{folder}` cannot go on training here: it has {key} {old[key]}, and here it is "
                f"{new[key]}",
                hint=f"set the same in `adapter`; {OTHERWISE}",
            )


def _refuse_another_shape(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], plain: Any, folder: Path
) -> None:
    heads = new_parts(plain)
    wrong = [name for name in own if name not in weights and not _is_of(name, heads)]
    wrong += [name for name in own if name in weights and own[name].shape != weights[name].shape]
    there = {name.split(".")[0] for name, _ in plain.named_modules()}
    wrong += [name for name in weights if name not in own and _parts(name)[0] in there]
    if wrong or not set(own) & set(weights):
        raise InputError(
            f"`{folder}` cannot go on training here: it has another shape, e.g. in `{wrong[0]}`"
            if wrong
            else f"`{folder}` has no part in common with what is to train here",
            hint=OTHERWISE,
        )


def _parts(name: str) -> list[str]:
    return name.removeprefix("base_model.model.").split(".")


def _is_of(name: str, modules: list[str]) -> bool:
    return any(f".{module}." in f".{name}." for module in modules)
