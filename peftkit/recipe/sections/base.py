"""The `base` section: the pretrained model that everything else adapts."""

from typing import Annotated, Literal

from pydantic import Field

from peftkit.recipe.sections.section import Section

FOUR_BITS = ("nf4", "fp4")
"""Values of `quantize` that pack two numbers into a byte."""


class BaseSection(Section):
    """The frozen model."""

    model: Annotated[str, Field(min_length=1, examples=["builtin:tiny"])]
    """`builtin:tiny`, a folder, or a hub id."""
    revision: str = "main"
    """Commit, tag or branch of a hub model; `lock.json` records the commit it meant."""
    task: Literal["causal-lm"] = "causal-lm"
    """What the model is asked to do."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` keeps the shape and throws the knowledge away: the from-scratch control."""
    quantize: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Linear layers in 4 (`nf4`, `fp4`) or 8 bits a number; norms, embeddings and head stay."""
    double_quant: bool = True
    """Whether the scales of 4-bit blocks are quantized too: 0.4 bits a number less."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the base; `auto`: bfloat16 where the machine is fast in it, else float32."""
