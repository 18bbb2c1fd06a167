"""Which layers an adapter goes on: names and block numbers, checked against the model itself."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from peftkit.base.tasks import new_parts
from peftkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

BLOCK = re.compile(r"\.(\d+)\.")
OUTSIDE = "outside"
"""What stands for all that is in no block: embeddings, the last norm, the head."""
KEYS_AND_VALUES = (
    *("k_proj", "v_proj", "c_attn", "qkv_proj", "query_key_value"),
    *("attention.key", "attention.value", "att_proj", "Wqkv", "self.key", "self.value"),
    *("key_proj", "value_proj", "k_lin", "v_lin", "SelfAttention.k", "SelfAttention.v"),
    *("EncDecAttention.k", "EncDecAttention.v"),
)
"""What families call the layers that make keys and values, some of them with the queries."""
PLACES = ("position_embeddings", "wpe", "embed_positions", "position_embedding")
"""What families call the vectors of places, where these are learned."""
LAST_OF_MLP = (
    *("down_proj", "mlp.c_proj", "fc2", "dense_4h_to_h", "fc_out", "mlp.w2", "mlp.dense_4h_to_h"),
    *("mlp.Wo", "DenseReluDense.wo", "ffn.lin2", "layer.{}.output.dense"),
)
"""What families call the last layer of an MLP; `{}` is the number of its block."""
READ_DIRECTLY = {
    **dict.fromkeys(("mamba", "falcon_mamba"), ("x_proj", "dt_proj", "out_proj")),
    **dict.fromkeys(("mamba2", "falcon_h1", "nemotron_h"), ("out_proj",)),
    **dict.fromkeys(("bamba", "granitemoehybrid"), ("out_proj",)),
    "jamba": ("dt_proj",),
}
"""By family, layers whose weights a fused kernel reads past the layer: an adapter has no effect."""
FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_layer_norm", "final_layernorm")
"""What families call the norm above all blocks."""


def linear_layers(model: Any) -> dict[str, Any]:
    """Name and module of every linear layer inside the blocks, the output head left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and BLOCK.search(name)
    }


def shape_of_layer(layer: Any) -> tuple[int, int]:
    """The sizes of a linear layer's weight as the layer is written; a packed weight has others."""
    from torch import nn

    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    into, out = layer.weight.shape
    return into, out


def choose_targets(model: Any, wanted: Sequence[str]) -> list[str]:
    """The layer names (`q_proj`, …) that `adapter.targets` means in this model."""
    layers = linear_layers(model)
    read = READ_DIRECTLY.get(model.config.model_type, ())
    leaves = sorted({name.rsplit(".", 1)[-1] for name in layers} - set(read))
    if tuple(wanted) == ("all-linear",):
        gates = {name.rsplit(".", 1)[-1] for name, layer in layers.items() if _is_gate(layer)}
        return [leaf for leaf in leaves if leaf not in gates]
    problems = []
    for name in wanted:
        if name.rsplit(".", 1)[-1] in read:
            problems.append(
                f"adapter.targets: `{name}` cannot be adapted: a {model.config.model_type} base "
                "reads its weights past the layer"
            )
            continue
        if not any(means(name, full) for full in layers):
            close = get_close_matches(name, leaves, n=1, cutoff=0.5)
            ending = f"did you mean `{close[0]}`?" if close else "no layer is called that"
            problems.append(f"adapter.targets: `{name}` matches nothing; {ending}")
    if problems:
        raise RecipeError(
            "the base has no such layers" if not read else "the base has no such layers to adapt",
            problems=problems,
            hint=f"this base has: all-linear, {', '.join(leaves)}",
        )
    return sorted(set(wanted))


def _is_gate(layer: Any) -> bool:
    """Whether a layer gives one number, which no low rank can make smaller."""
    return getattr(layer, "out_features", 2) == 1


def explain_experts(model: Any) -> str | None:
    """Which weights of a mixture of experts no layer adapter reaches; None for other bases."""
    fused = {
        name.rpartition(".")[2]: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and "expert" in name
    }
    if not fused:
        return None
    held = ", ".join(f"`{name}` {shape}" for name, shape in sorted(fused.items()))
    return (
        f"the experts of this base are single tensors, not layers ({held} a block): adapters go on "
        "attention and on shared experts; `full` and `top` train the experts too"
    )


def choose_attention_and_mlp(
    model: Any, targets: str | Sequence[str], inner: str | Sequence[str]
) -> tuple[list[str], list[str]]:
    """Layers that are scaled, and those of them whose inputs are, as `ia3` has them."""
    if targets != "auto":
        chosen = choose_targets(model, targets)
    else:
        chosen = sorted(
            name for group in (KEYS_AND_VALUES, LAST_OF_MLP) for name in _known_names(model, group)
        )
    if inner == "auto":
        last = list(_by_block(model, LAST_OF_MLP))
        return chosen, [name for name in chosen if any(means(one, name) for one in last)]
    if strange := sorted(set(inner) - set(chosen)):
        raise RecipeError(
            f"adapter.feedforward: `{strange[0]}` is none of the targets",
            hint=f"the targets are: {', '.join(chosen)}",
        )
    return chosen, sorted(set(inner))


def _known_names(model: Any, group: Sequence[str]) -> list[str]:
    layers = linear_layers(model)
    named = _by_block(model, group)
    found = [name for name in named if any(means(name, full) for full in layers)]
    if not found:
        leaves = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise RecipeError(
            f"adapter.targets: `auto` does not know the layers of a {model.config.model_type} base",
            hint=f"name those to scale; this base has: {', '.join(leaves)}",
        )
    return found


def _by_block(model: Any, names: Sequence[str]) -> Iterator[str]:
    """The names, one for each block where a name has its number in it."""
    for name in names:
        if "{}" in name:
            yield from (name.format(number) for number in range(count_blocks(model)))
        else:
            yield name


def means(wanted: str, name: str) -> bool:
    """Whether a target names the layer, by its whole name or by the end of it after a dot."""
    return name == wanted or name.endswith(f".{wanted}")


def count_blocks(model: Any) -> int:
    """How many blocks the model is stacked from."""
    numbers = {int(match[1]) for name in linear_layers(model) if (match := BLOCK.search(name))}
    return max(numbers) + 1 if numbers else 0


def block_name(name: str) -> str:
    """A short name of the block that a module or parameter is in, as `layers.3`."""
    match = BLOCK.search(name)
    if match is None:
        return OUTSIDE
    return ".".join(name[: match.end() - 1].split(".")[-2:])


def first_block(names: Iterable[str]) -> int:
    """The lowest block that parameters of these names are in; 0 where one is in no block."""
    matches = [BLOCK.search(name) for name in names]
    return min((int(match[1]) if match else 0 for match in matches), default=0)


def first_trained_block(model: Any, plain: Any) -> int:
    """The lowest block that training begins in; what stands above all blocks does not count.

    Args:
        model: with its adapter.
        plain: the transformers model inside, which may be the same.
    """
    heads = [plain.get_output_embeddings(), *(plain.get_submodule(n) for n in new_parts(plain))]
    above = {id(p) for head in heads if head is not None for p in head.parameters()}
    above -= {id(parameter) for parameter in plain.get_input_embeddings().parameters()}
    if (norm := final_norm(plain)) is not None:
        above |= {id(parameter) for parameter in norm.parameters()}
    named = model.named_parameters()
    return first_block(n for n, p in named if p.requires_grad and id(p) not in above)


def final_norm(model: Any) -> Any | None:
    """The norm above all blocks, where it stands beside them under a name that families use."""
    inside = next((match for name in linear_layers(model) if (match := _blocks_of(name))), None)
    around = None if inside is None else model.get_submodule(inside)
    found = (getattr(around, name, None) for name in FINAL_NORMS)
    return next((norm for norm in found if is_norm(norm)), None)


def _blocks_of(name: str) -> str | None:
    """The module that holds the list of blocks which a layer is in: `model` for most families."""
    match = BLOCK.search(name)
    return name[: match.start()].rpartition(".")[0] if match else None


def is_norm(module: Any) -> bool:
    """Whether a module is a norm with a weight of its own, as families write and name them."""
    weight = getattr(module, "weight", None)
    named = type(module).__name__.lower().endswith(("norm", "layernorm1p"))
    return named and getattr(weight, "ndim", 0) == 1


def learned_places(model: Any) -> int | None:
    """Most tokens that a base with a vector for each place can read; None for other bases."""
    from torch import nn

    said = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in PLACES:
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            known = module.num_embeddings - first
            return min(known, said) if isinstance(said, int) else known
    return None


def in_blocks(name: str, blocks: Sequence[int] | None) -> bool:
    """Whether a layer is in one of these blocks; None means every block."""
    match = BLOCK.search(name)
    return blocks is None or (match is not None and int(match[1]) in blocks)


def list_blocks(model: Any) -> list[Any]:
    """The blocks that the model is stacked from, lowest first."""
    found = {}
    for name in linear_layers(model):
        if match := BLOCK.search(name):
            found[int(match[1])] = name[: match.end() - 1]
    return [model.get_submodule(found[number]) for number in sorted(found)]


def choose_blocks(model: Any, wanted: str | Sequence[int]) -> list[int] | None:
    """The block numbers that `adapter.layers` means; None for all of them."""
    count = count_blocks(model)
    if wanted == "all":
        return None
    if wanted == "upper-half":
        return list(range(count // 2, count))
    numbers = sorted({int(number) for number in wanted})
    if not numbers:  # peft would take an empty list for all of them
        raise RecipeError("adapter.layers: the list is empty", hint="`all` means every block")
    if numbers[-1] >= count:
        raise RecipeError(
            f"adapter.layers: there is no block {numbers[-1]}; "
            f"the base has {count}, counted from 0 to {count - 1}"
        )
    return numbers
