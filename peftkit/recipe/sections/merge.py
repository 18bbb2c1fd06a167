"""The other sections of a merge: weights by layer, heads, the result, and how it is judged."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from peftkit.recipe.sections.data import Sources
from peftkit.recipe.sections.section import Count, Expected, Section

Pattern = Annotated[str, Field(min_length=1, examples=['"*.mlp.*"'])]
Bounds = Annotated[
    tuple[float, ...],
    Field(min_length=2, max_length=2),
    Expected("two numbers, the smaller one first, such as `[0, 1.5]`"),
]


class ScaleSection(Section):
    """What some layers of some terms are multiplied by, on top of the formula's numbers."""

    match: Pattern
    """A pattern of names of layers, such as `*.mlp.*` or `*.layers.0.*`."""
    times: Annotated[dict[str, float], Field(min_length=1), Expected("such as `{code: 0.5}`")]
    """By term, as the formula names it."""


class KeepSection(Section):
    """Of several heads, one is kept."""

    keep: Annotated[str, Field(min_length=1, examples=["chat"])]
    """The term whose head it is."""


Heads = Literal["error", "drop", "average"] | KeepSection


class OutputSection(Section):
    """What is written, and how large its error may be."""

    form: Annotated[Literal["adapter", "weights"], Field(alias="as")] = "adapter"
    """An adapter beside the base, or the base with the change in its weights."""
    rank: Literal["all"] | Count = "all"
    """The most that a layer keeps; `all` is the exact sum."""
    energy: Literal["all"] | Annotated[float, Field(gt=0, le=1)] = "all"
    """Share of the squared singular values that every layer keeps."""
    fail_above: Annotated[float, Field(ge=0)] = 1.0
    """Relative error from which nothing is written."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of an adapter's factors; weights keep that of the base."""
    vocabulary: Literal["same", "base", "union"] = "same"
    """Of whole models with other tokenizers: refused (`same`), or rows are matched by their tokens.

    Tokens that the base lacks are left out (`base`), or kept with the mean of their rows if they
    were added (`union`). What a model has no row for it does not change.
    """

    @model_validator(mode="after")
    def _one_cut(self) -> Self:
        if self.rank != "all" and self.energy != "all":
            raise ValueError("either `rank` or `energy` says where to cut; keep one")
        if self.form == "weights" and self.dtype != "float32":
            raise ValueError("`dtype` is that of an adapter; weights keep the base's")
        if self.form == "adapter" and self.vocabulary != "same":
            raise ValueError("`vocabulary` is for `as: weights`; an adapter has the base's")
        return self


class SearchSection(Section):
    """Numbers of the formula that are sought instead of given."""

    over: Annotated[
        dict[str, Bounds], Field(min_length=1), Expected("a section such as `{code: [0, 1.5]}`")
    ]
    """Terms whose numbers are sought, and between what; the others keep theirs."""
    objective: Annotated[str, Field(min_length=1, examples=["code"])]
    """The set under `evaluate.tasks` that is made as good as possible."""
    direction: Literal["improve", "worsen"] = "improve"
    """Make that set better, or worse: `worsen` is what negation is for."""
    subject_to: Annotated[
        dict[str, Annotated[float, Field(gt=0)]], Expected("a section such as `{control: 0.95}`")
    ] = Field(default_factory=dict)
    """By set, the share of the base's performance that must be left."""
    budget: Count = 40
    """Evaluations that the search may take."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the rows that the search never sees; the result is judged on these."""


class JudgeSection(Section):
    """What the merged model, the base and every parent are measured on."""

    tasks: Annotated[
        dict[str, Sources],
        Expected("a section of sources such as `{chat: chat.jsonl}`"),
    ] = Field(default_factory=dict)
    """Rows of each task, by its name; none are measured unless given."""
    control: Sources = ()
    """General text that must not be forgotten."""
    rows: Count = 512
    """At most this many rows of each set are evaluated; the same ones every time."""
