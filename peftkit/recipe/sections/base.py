"""The `base` section: the pretrained model that everything else adapts."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from peftkit.recipe.sections.section import Expected, Section


def _each_once(value: Any) -> Any:
    """A list as a tuple, where every entry is a text with something in it, once."""
    if not isinstance(value, list | tuple):
        return value
    texts = [token for token in value if isinstance(token, str)]
    if any(not token.strip() for token in texts) or len(set(texts)) < len(texts):
        raise ValueError("each token must be there once, and not be empty")
    return tuple(value)


Tokens = Annotated[
    tuple[str, ...],
    BeforeValidator(_each_once, json_schema_input_type=tuple[str, ...]),
    Expected("a list of new tokens, each once and none of them empty, such as `[<call>, <end>]`"),
]


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
    add_tokens: Tokens = ()
    """Texts that become one token each; only their rows train beside the adapter, which is LoRA."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the base; `auto`: bfloat16 where the machine is fast in it, else float32."""
