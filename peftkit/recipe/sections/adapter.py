"""The `adapter` section: which few parameters train, one model a method."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from peftkit.recipe.sections.section import Auto, Count, Expected, PositiveNumber, Section, Share

IN_PLACE = ("bitfit", "layernorm", "head", "top", "full")
"""Methods that train the base's own parameters, and put nothing beside them."""
RSLORA_ALPHA = 8.0
"""What `auto` means for rsLoRA: the scale of plain LoRA at rank 16, and less above it."""


def _one_as_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _as_tuple(value)


def _one_as_many_but_auto(value: Any) -> Any:
    return value if value == "auto" else _one_as_many(value)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Targets = Annotated[
    tuple[str, ...],
    Field(min_length=1),
    BeforeValidator(_one_as_many, json_schema_input_type=str | tuple[str, ...]),
    Expected("`all-linear`, or names of layers such as `[q_proj, v_proj]`"),
]
Names = Annotated[
    Auto | Annotated[tuple[str, ...], Field(min_length=1)],
    BeforeValidator(_one_as_many_but_auto, json_schema_input_type=str | tuple[str, ...]),
    Expected("`auto`, or names of layers such as `[k_proj, v_proj, down_proj]`"),
]
Ranks = Annotated[
    dict[str, Count], Expected("a section of layers such as `{q_proj: 8, down_proj: 32}`")
]
Alphas = Annotated[
    dict[str, PositiveNumber], Expected("a section of layers such as `{q_proj: 16, down_proj: 64}`")
]
Layers = Literal["all", "upper-half"] | tuple[Annotated[int, Field(ge=0)], ...]


Whole = Annotated[
    tuple[Literal["embeddings", "head"], ...],
    BeforeValidator(
        _one_as_many,
        json_schema_input_type=Literal["embeddings", "head"]
        | tuple[Literal["embeddings", "head"], ...],
    ),
    Expected("`embeddings`, `head`, or a list of both"),
]
LoraMethod = Annotated[
    Literal["lora"],
    # The recipe spells `qlora` out before this section sees it; editors are to accept it.
    WithJsonSchema({"enum": ["lora", "qlora"], "type": "string"}),
]
NOTHING = "none"
"""What `under` says where the adapter stands on the base itself."""


Opening = Annotated[
    Annotated[str, Field(min_length=1)] | None, Expected("a text such as `Translate:`, or `null`")
]


class MethodSection(Section):
    """What the section of every method may say."""

    under: Annotated[
        str, Field(min_length=1), Expected("`none`, or an adapter folder or a run folder")
    ] = NOTHING
    """An earlier adapter that the new one starts from and is compared with, as `under_as` says."""
    under_as: Literal["stacked", "folded", "continued"] = "stacked"
    """`stacked`: it stays, frozen, under the new one; `folded`: the base gets it into its weights;
    `continued`: it is that adapter itself which trains on."""


class LoraSection(MethodSection):
    """Low-rank update of linear layers (Hu et al., 2021); `qlora` on `base.quantize: nf4`."""

    method: LoraMethod = "lora"
    variant: Literal["plain", "rslora", "dora", "pissa", "olora", "loftq", "eva"] = "plain"
    """`rslora` scales by the rank's root, `dora` trains lengths apart; others start elsewhere."""
    rank: Count = 16
    """Width of the update; capacity and size grow linearly with it."""
    alpha: PositiveNumber | Auto = "auto"
    """The update is scaled by `alpha / rank`; `auto` is twice the rank, and 8 for `rslora`."""
    rank_pattern: Ranks = Field(default_factory=dict)
    """Ranks of single layers, by the end of their names; all others have `rank`."""
    alpha_pattern: Alphas = Field(default_factory=dict)
    """`alpha` of single layers; where `alpha` is `auto`, that of a rank above is twice it too."""
    bias: bool = False
    """Whether each update trains a bias as well; such an adapter merges into few bases."""
    b_learning_rate_ratio: PositiveNumber = 1.0
    """How many times faster the second matrix of an update learns than the first (LoRA+)."""
    dropout: Share = 0.0
    """Share of the update's inputs dropped while training."""
    targets: Targets = ("all-linear",)
    """`all-linear`, or names of layers to adapt (`q_proj`), matched at a dot boundary."""
    layers: Layers = "all"
    """Which blocks carry the adapter: `all`, `upper-half`, or a list of block numbers."""
    also: Whole = ()
    """What trains whole beside the updates, such as for text of another kind: `[embeddings, head]`;
    where a base has one matrix for both, either means it."""

    @model_validator(mode="after")
    def _settle_alpha(self) -> Self:
        if self.alpha == "auto":
            rooted = self.variant == "rslora"
            object.__setattr__(self, "alpha", RSLORA_ALPHA if rooted else 2.0 * self.rank)
            own = {} if rooted else {name: 2.0 * n for name, n in self.rank_pattern.items()}
            object.__setattr__(self, "alpha_pattern", own | self.alpha_pattern)
        return self


class Ia3Section(MethodSection):
    """One trained factor for each key, value and inner activation (Liu et al., 2022)."""

    method: Literal["ia3"]
    targets: Names = "auto"
    """Layers that are scaled; `auto` takes keys, values and the last layer of each MLP."""
    feedforward: Names = "auto"
    """Those of `targets` whose inputs are scaled, not their outputs; `auto` takes an MLP's last."""


class VeraSection(MethodSection):
    """Two trained vectors a layer around random matrices that all share (Kopiczko et al., 2024)."""

    method: Literal["vera"]
    rank: Count = 256
    """Width of the random matrices; a layer trains as many numbers as its outputs and the rank."""
    dropout: Share = 0.0
    """Share of the update's inputs dropped while training."""
    targets: Targets = ("all-linear",)
    """`all-linear`, or names of layers to adapt (`q_proj`), matched at a dot boundary."""
    layers: Layers = "all"
    """Which blocks carry the adapter: `all`, `upper-half`, or a list of block numbers."""


class OftSection(MethodSection):
    """Rotations of each layer's inputs, in blocks of them (Qiu et al., 2023)."""

    method: Literal["oft"]
    block_size: Annotated[int, Field(ge=2)] = 32
    """Inputs turned together; it must divide the inputs of every target."""
    dropout: Share = 0.0
    """Share of the blocks that are left unturned while training."""
    targets: Targets = ("all-linear",)
    """`all-linear`, or names of layers to adapt (`q_proj`), matched at a dot boundary."""
    layers: Layers = "all"
    """Which blocks carry the adapter: `all`, `upper-half`, or a list of block numbers."""


class BottleneckSection(MethodSection):
    """A small network in each block, or two: down, a bend, and up again (Houlsby et al., 2019)."""

    method: Literal["bottleneck"]
    variant: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """`houlsby` after attention and the MLP, `pfeiffer` after the MLP, `parallel` beside it."""
    reduction: Count = 16
    """What the width of the base is divided by to give that of the network."""
    size: Count | Auto = "auto"
    """The width of the network itself; `auto` follows from `reduction`."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """The bend between the two layers."""
    dropout: Share = 0.0
    """Share of the network's inputs dropped while training."""
    scale: PositiveNumber = 1.0
    """What the network's outputs are multiplied by."""
    layers: Layers = "all"
    """Which blocks carry the adapter: `all`, `upper-half`, or a list of block numbers."""


class PrefixSection(MethodSection):
    """Trained keys and values before those of the text, in every layer (Li and Liang, 2021)."""

    method: Literal["prefix"]
    tokens: Count = 16
    """How many stand before the text; they take places of the base's window."""
    projection: bool = False
    """Whether a network of two layers computes them: it trains faster, and is not saved."""
    projection_size: Count | Auto = "auto"
    """Inner width of that network; `auto` is the width of the base."""
    init_text: Opening = None
    """A text whose keys and values they start as; without one they start next to 0."""

    @model_validator(mode="after")
    def _refuse_both(self) -> Self:
        if self.projection and self.init_text is not None:
            raise ValueError("init_text: what `projection` computes cannot start as a text")
        return self


class PromptSection(MethodSection):
    """Trained embeddings before those of the text (Lester et al., 2021)."""

    method: Literal["prompt"]
    tokens: Count = 16
    """How many stand before the text; they take places of the base's window."""
    init_text: Opening = None
    """A text whose embeddings they start as; without one, those of tokens drawn at random."""


class PTuningSection(MethodSection):
    """Embeddings before those of the text that a small network computes (Liu et al., 2021)."""

    method: Literal["p-tuning"]
    tokens: Count = 16
    """How many stand before the text; they take places of the base's window."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network: three layers, or a recurrent one in both directions and two layers."""
    encoder_size: Count | Auto = "auto"
    """Inner width of that network; `auto` is the width of the base."""


class LayernormSection(MethodSection):
    """The base's own norms train, with their biases, and nothing else (Zhao et al., 2024)."""

    method: Literal["layernorm"]


class BitfitSection(MethodSection):
    """The base's own biases train, and nothing else (Ben Zaken et al., 2022)."""

    method: Literal["bitfit"]


class HeadSection(MethodSection):
    """Only the head trains, on frozen features; for text it is the layer above all blocks."""

    method: Literal["head"]
    hidden: Annotated[int, Field(ge=0)] = 0
    """Width of a layer put before the head of a task with labels; 0 for the head as it is."""
    dropout: Share = 0.0
    """Share of the features dropped while training, before both layers that `hidden` asks for."""

    @model_validator(mode="after")
    def _dropout_is_of_the_layers(self) -> Self:
        if self.dropout and not self.hidden:
            msg = "`dropout` stands before the layers that `hidden` asks for, and `hidden` is 0"
            raise ValueError(msg)
        return self


class TopSection(MethodSection):
    """The top blocks of the base train whole, and the norm above them."""

    method: Literal["top"]
    blocks: Count = 2
    """How many blocks train, counted from the top."""
    reset: Annotated[int, Field(ge=0)] = 0
    """Topmost blocks that start from random numbers, to borrow only the layers below them."""

    @model_validator(mode="after")
    def _reset_what_trains(self) -> Self:
        if self.reset > self.blocks:
            raise ValueError(
                f"`reset` is {self.reset}, and only {self.blocks} blocks train; "
                f"set `blocks` to {self.reset} as well"
            )
        return self


class FullSection(MethodSection):
    """Every parameter trains: the upper bound, and how a base is pretrained."""

    method: Literal["full"]


def _method(value: Any) -> str | None:
    if isinstance(value, dict):
        named = value.get("method", "lora")
        return named if isinstance(named, str) else None
    return getattr(value, "method", None)


AdapterSection = Annotated[
    Annotated[LoraSection, Tag("lora")]
    | Annotated[Ia3Section, Tag("ia3")]
    | Annotated[VeraSection, Tag("vera")]
    | Annotated[OftSection, Tag("oft")]
    | Annotated[BottleneckSection, Tag("bottleneck")]
    | Annotated[PrefixSection, Tag("prefix")]
    | Annotated[PromptSection, Tag("prompt")]
    | Annotated[PTuningSection, Tag("p-tuning")]
    | Annotated[LayernormSection, Tag("layernorm")]
    | Annotated[BitfitSection, Tag("bitfit")]
    | Annotated[HeadSection, Tag("head")]
    | Annotated[TopSection, Tag("top")]
    | Annotated[FullSection, Tag("full")],
    Discriminator(_method),
]
