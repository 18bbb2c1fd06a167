"""Where attention and MLP end in each block: by the names families use, checked on the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.base.targets import BLOCK, linear_layers, means
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Place:
    """Modules by the ends of their names, one or more in every block."""

    names: tuple[str, ...]
    without: tuple[str, ...] = ()
    """Longer ends of names that `names` would mean as well, and should not."""


ATTENTION_OUTPUTS = (
    *(Place((name,)) for name in ("self_attn.o_proj", "self_attn.dense", "attn.c_proj")),
    Place(("self_attn.out_proj", "encoder_attn.out_proj")),
    *(Place((name,)) for name in ("self_attention.dense", "attention.dense", "attn.out_proj")),
    Place(("attention.output.dense", "crossattention.output.dense")),
    *(Place((name,)) for name in ("attn.Wo", "attention.out_lin")),
    Place(("SelfAttention.o", "EncDecAttention.o")),
)
"""What families call the last layer of attention."""
MLP_OUTPUTS = (
    *(Place((name,)) for name in ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h")),
    *(Place((name,)) for name in ("fc2", "mlp.Wo", "mlp.fc_out", "ffn.lin2")),
    Place(("output.dense",), ("attention.output.dense", "crossattention.output.dense")),
    Place(("DenseReluDense.wo",)),
)
"""What families call the last layer of an MLP that is not a mixture of experts."""
MLPS = tuple(Place((name,)) for name in ("mlp", "ffn", "block_sparse_moe", "DenseReluDense"))
"""What families call an MLP or a mixture of experts, where it is one module."""
MLP_ENDS = Place(("output",), ("attention.output", "crossattention.output"))
"""What BERT and its kin call the end of an MLP, which is given the MLP's input to add to it."""


def after_attention(model: Any) -> Place:
    """The last layer of the attention of every block."""
    return _find(model, ATTENTION_OUTPUTS) or _refuse(model, "its attention ends")


def after_mlp(model: Any) -> Place:
    """The last layer of the MLP of every block; the whole MLP where that has many last layers."""
    return _find(model, (*MLP_OUTPUTS, *MLPS)) or _refuse(model, "its MLP ends")


def whole_mlp(model: Any) -> Place:
    """The MLP of every block, or the end of it that is given its input once more."""
    found = _find(model, (*MLPS, MLP_ENDS))
    if found is None:
        raise RecipeError(
            "adapter.variant: parallel stands beside an MLP that is one module, and in the blocks "
            f"of this base ({model.config.model_type}) none is known",
            hint="`--set adapter.variant=pfeiffer` stands after it",
        )
    return found


def block_list(model: Any) -> str:
    """What the lists of blocks are called: `layers` for most families."""
    return min(_blocks(model)).split(".")[-2]


def _find(model: Any, places: Iterable[Place]) -> Place | None:
    """The first place that every block has, without the names that the model has not."""
    blocks = _blocks(model)
    modules = [name for name, _ in model.named_modules()]
    for place in places:
        found = {name: _meant(modules, name, place.without) for name in place.names}
        if {_block_of(module) for own in found.values() for module in own} == blocks:
            without = (name for name in place.without if _meant(modules, name, ()))
            return Place(tuple(name for name, own in found.items() if own), tuple(without))
    return None


def _meant(modules: Sequence[str], name: str, without: Sequence[str]) -> list[str]:
    return [
        module
        for module in modules
        if means(name, module) and not any(means(other, module) for other in without)
    ]


def _blocks(model: Any) -> set[str]:
    return {_block_of(name) for name in linear_layers(model)}


def _block_of(name: str) -> str:
    """The block that a module is in; empty for one that is in none."""
    match = BLOCK.search(name)
    return name[: match.end() - 1] if match else ""


def _refuse(model: Any, where: str) -> Place:
    raise RecipeError(
        f"adapter.method: bottleneck does not know where {where} in this base "
        f"({model.config.model_type})",
        hint="`--set adapter.method=lora` fits every base",
    )
