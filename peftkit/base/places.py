"""Where each parameter that trains stands: below all blocks, in one of them, or above them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.base.targets import BLOCK, count_blocks, final_norm, linear_layers
from peftkit.base.tasks import new_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

BELOW, ABOVE = "embeddings", "norm above"
"""What a table calls what stands under the lowest block, and over the highest one beside heads."""
HEAD = "head"
BEFORE = "before the text"
"""What a table calls virtual tokens, which are in no block."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one parameter stands."""

    name: str
    """What a table calls it; a parameter of another place has another one."""
    level: int
    """Blocks that stand below it; -1 below all blocks, and as many as there are above them."""
    head: bool = False


def place_parameters(model: Any, plain: Any) -> dict[str, Place]:
    """The place of every parameter that trains, by name, in the model's order.

    Args:
        model: with its adapter.
        plain: the transformers model inside, which may be the same.
    """
    heads, norms = {id(p) for p in _heads(plain)}, {id(p) for p in _norm_above(plain)}
    stacks = list_stacks(plain)
    top = count_blocks(plain)
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        match = BLOCK.search(name)
        if id(parameter) in heads:
            found[name] = Place(HEAD, top, head=True)
        elif id(parameter) in norms:
            found[name] = Place(ABOVE, top)
        elif match is not None:
            block = f"block {match[1]}" if len(stacks) < 2 else name[: match.end() - 1]
            found[name] = Place(bare_name(block), int(match[1]))
        else:
            found[name] = Place(BEFORE if name.startswith("prompt_encoder.") else BELOW, -1)
    return found


def refuse_order(model: Any, plain: Any) -> str | None:
    """Why the places of what trains are in no order, if so."""
    stacks = list_stacks(plain)
    if not stacks:
        return "the base is not made of numbered blocks"
    if len(stacks) > 1:
        named = " and ".join(f"`{stack}`" for stack in stacks)
        return f"the base has {len(stacks)} stacks of blocks, {named}"
    if count_blocks(plain) < 2:
        return "all layers of the base are in one block"
    if any(place.name == BEFORE for place in place_parameters(model, plain).values()):
        return "what trains stands before the text, and in no block"
    return None


def list_stacks(plain: Any) -> list[str]:
    """What holds the numbered blocks: one module for most families, two for T5's."""
    matches = ((name, BLOCK.search(name)) for name in linear_layers(plain))
    return sorted({name[: match.start()] for name, match in matches if match})


def bare_name(name: str) -> str:
    """The name of a parameter as the base has it, without what peft writes before it."""
    return name.removeprefix("base_model.model.")


def _heads(plain: Any) -> Iterator[Any]:
    """Parameters of heads: what stands outside the backbone, and what no base brings along."""
    inside = {id(parameter) for parameter in plain.base_model.parameters()}
    yield from (p for p in plain.parameters() if id(p) not in inside)
    for name in new_parts(plain):
        yield from plain.get_submodule(name).parameters()


def _norm_above(plain: Any) -> Iterator[Any]:
    norm = final_norm(plain)
    return iter(()) if norm is None else norm.parameters()
