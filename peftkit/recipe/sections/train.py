"""The `train` section: how long, how fast, and how often it saves."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from peftkit.recipe.sections.pace import (
    Groups,
    LearningRate,
    Ratio,
    Unfreeze,
)
from peftkit.recipe.sections.regularize import Entry, twice
from peftkit.recipe.sections.section import (
    Auto,
    Count,
    Expected,
    PositiveNumber,
    Section,
    Share,
)
from peftkit.recipe.sections.stopping import Average, Stopping

SCHEDULES = Literal[
    "constant",
    "linear",
    "cosine",
    "inverse-sqrt",
    "onecycle",
    "slanted-triangular",
    "warmup-stable-decay",
]


USUAL_WARMUP = {"onecycle": 0.25, "slanted-triangular": 0.1}
"""Shares of the steps that those who described a schedule let it rise."""


class BatchSection(Section):
    """How much one optimizer update sees."""

    rows: Count = 16
    """Data rows an update; `packing` lays them out more densely and changes nothing else."""
    micro_rows: Count | Auto = "auto"
    """Rows a forward pass; `auto` takes what fits. Moves nothing but rounding and dropout."""


class FastSection(Section):
    """Fast paths; each proves at the start that it gives its plain twin's result, or stays off."""

    flat: Literal["auto", "off"] = "auto"
    """Packed documents end to end, with neither padding nor mask, where that is faster."""
    head: Literal["auto", "off"] = "auto"
    """Loss through a frozen head only where tokens are trained, in chunks, keeping no logits."""
    lora: Literal["auto", "off"] = "auto"
    """LoRA layers train in the base's number format, with their masters in float32."""
    frozen: Literal["auto", "off"] = "auto"
    """What blocks below the first adapter compute is kept on disk, where a run needs it again."""
    norm: Literal["auto", "off"] = "auto"
    """Norms keep their input for the backward pass, and not its float32 copy."""
    optimizer: Literal["auto", "off"] = "auto"
    """AdamW over one buffer instead of over each parameter."""
    compile: Literal["auto", "off"] = "auto"
    """`torch.compile` for the blocks of runs long enough to earn back what it takes."""


def _all_or_each(value: Any) -> Any:
    if value in ("auto", "off"):
        return dict.fromkeys(FastSection.model_fields, value)
    return value


FastPaths = Annotated[
    FastSection,
    BeforeValidator(_all_or_each, json_schema_input_type=Literal["auto", "off"] | FastSection),
    Expected("`auto`, `off`, or a section such as `{head: off}`"),
]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _once_each(entries: Any) -> Any:
    if name := twice(entries):
        msg = f"`{name}` stands there twice; keep one"
        raise ValueError(msg)
    return entries


Regularize = Annotated[
    tuple[Entry, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=tuple[Entry, ...]),
    AfterValidator(_once_each),
    Expected("a list such as `[{l2sp: 0.01}, {label_smoothing: 0.1}]`"),
]


class TrainSection(Section):
    """One training run."""

    steps: Count | Auto = "auto"
    """Optimizer updates; `auto` follows from `epochs`."""
    epochs: PositiveNumber | Auto = "auto"
    """Passes over the training rows; 3 when `steps` is not given either."""
    batch: BatchSection = BatchSection()
    """How much one update sees."""
    learning_rate: LearningRate = 2e-4
    """Peak learning rate; `find` takes it from a range test before the first step."""
    schedule: SCHEDULES = "cosine"
    """How the learning rate moves after warm-up."""
    warmup: Share | Auto = "auto"
    """Share of the steps over which the learning rate rises; `auto` is 0.25 for `onecycle`, 0.1 for
    `slanted-triangular` and 0.05 for the others."""
    layer_decay: Ratio = 1.0
    """Learning rate of a block as a share of that of the block above; the head's is whole."""
    head_rate: PositiveNumber = 1.0
    """How many times faster heads learn than the highest block."""
    groups: Groups = ()
    """Parameters that learn faster or slower, on top of that; the first that fits counts."""
    unfreeze: Unfreeze = "none"
    """When each block begins to learn, from the top; `none` trains all from the first step."""
    optimizer: Literal["auto", "adamw", "paged-adamw"] = "auto"
    """Paged, a GPU short of memory moves AdamW's moments to the host; `auto` does so over a
    quantized base."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of matrices only; biases and norms never decay."""
    max_grad_norm: PositiveNumber = 1.0
    """Gradients are scaled down to this norm."""
    early_stopping: Stopping = "none"
    """What ends the run before its last step."""
    keep_best: Literal["auto", "on", "off"] = "auto"
    """The run ends with the weights of its lowest validation loss; `auto`: if it may stop early."""
    average: Average = "none"
    """The run ends with averaged weights instead of the last."""
    on_spike: Literal["warn", "skip", "stop"] = "warn"
    """At a sudden jump of loss or gradient norm: say so, leave the update out, or save and stop."""
    regularize: Regularize = ()
    """What is added to the loss, such as `[{l2sp: 0.01}, {label_smoothing: 0.1}]`; all of it adds
    up, and a strength of 0 is as if it were not there."""
    save_every: Count = 100
    """Steps between checkpoints; the last step is always saved."""
    keep: Count = 3
    """Checkpoints kept; older ones go once a newer one is verified."""
    recompute: Literal["auto", "off", "all"] = "auto"
    """Blocks that run again for the backward pass; `auto` takes as few as memory demands."""
    threads: Count | Auto = "auto"
    """CPU threads; `auto` measures a step and takes more than one only where that clearly pays."""
    fast: FastPaths = FastSection()
    """`off` takes the plain path everywhere; a section switches single paths off."""

    @model_validator(mode="after")
    def _settle_warmup(self) -> Self:
        if self.warmup == "auto":
            object.__setattr__(self, "warmup", USUAL_WARMUP.get(self.schedule, 0.05))
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        named = [key for key in ("steps", "epochs") if values.get(key, "auto") != "auto"]
        if len(named) == 2:
            msg = "`steps` and `epochs` both say how long to train; keep one"
            raise ValueError(msg)
        return values if named else {**values, "epochs": 3.0}
