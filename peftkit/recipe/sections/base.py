"""The `base` section: the pretrained model that everything else adapts."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from peftkit.recipe.sections.section import Auto, Expected, Section

Task = Literal[
    "causal-lm",
    "masked-lm",
    "seq2seq",
    "classification",
    "multi-label",
    "token-classification",
    "regression",
    "embedding",
]
LABELLED = ("classification", "multi-label", "token-classification")
"""Tasks whose answers are names from a list."""


def _as_names(value: Any) -> Any:
    """A YAML list as a tuple, and its numbers as they are written."""
    if not isinstance(value, list):
        return value
    return tuple(str(item) if type(item) is int else item for item in value)


Labels = Annotated[
    Auto | Annotated[tuple[str, ...], Field(min_length=2)],
    BeforeValidator(_as_names, json_schema_input_type=Auto | tuple[str | int, ...]),
    Expected("`auto`, or two names or more such as `[negative, positive]`"),
]


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
    Expected("a list of tokens, each once and none of them empty, such as `[<call>, <end>]`"),
]

FOUR_BITS = ("nf4", "fp4")
"""Values of `quantize` that pack two numbers into a byte."""


class BaseSection(Section):
    """The frozen model."""

    model: Annotated[str, Field(min_length=1, examples=["builtin:tiny"])]
    """`builtin:tiny`, a folder, or a hub id."""
    revision: str = "main"
    """Commit, tag or branch of a hub model; `lock.json` records the commit it meant."""
    task: Task = "causal-lm"
    """What the model is asked to do; its head trains beside the adapter where no base has one."""
    labels: Labels = "auto"
    """Names of the classes or tags; `auto` takes those of the training rows, in sorted order."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` keeps the shape and throws the knowledge away: the from-scratch control."""
    add_tokens: Tokens = ()
    """Texts that become one token each; only their rows train beside the adapter, which is LoRA."""
    stop_tokens: Tokens = ()
    """Tokens at which an answer ends, beside those that the base's own files name."""
    quantize: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Linear layers in 4 (`nf4`, `fp4`) or 8 bits a number; norms, embeddings and head stay."""
    double_quant: bool = True
    """Whether the scales of 4-bit blocks are quantized too: 0.4 bits a number less."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the base; `auto`: bfloat16 where the machine is fast in it, else float32."""

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, where they are named or settled; none yet where they are `auto`."""
        return () if self.labels == "auto" else self.labels

    @model_validator(mode="after")
    def _labels_where_there_are_any(self) -> Self:
        if self.labels == "auto":
            return self
        if self.task not in LABELLED:
            msg = f"`labels` are for {', '.join(LABELLED)}; a {self.task} base has none"
            raise ValueError(msg)
        if len(set(self.labels)) < len(self.labels):
            msg = "`labels` names one of them twice"
            raise ValueError(msg)
        return self
