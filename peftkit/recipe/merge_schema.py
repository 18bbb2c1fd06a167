"""What a merge may say: adapters, a formula of them, and what is made of the result."""

import keyword
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from peftkit.errors import RecipeError
from peftkit.recipe.expression import parse
from peftkit.recipe.sections.merge import (
    Heads,
    JudgeSection,
    KeepSection,
    OutputSection,
    Pattern,
    ScaleSection,
    SearchSection,
)
from peftkit.recipe.sections.merge_methods import MergeMethod, SumMethod
from peftkit.recipe.sections.section import Auto, Expected, Name, Section, refused
from peftkit.recipe.spelling import did_you_mean

CONTROL = "control"
"""What a search calls the rows of `evaluate.control`."""
Place = tuple[str | int, ...]


class MergeRecipe(Section):
    """One whole merge: what goes in, what is made of it, and how it is judged."""

    name: Name
    """Names the result, `merged/<name>`; the file's stem unless given."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seeds what a method or a search draws by chance."""
    base: Auto | Annotated[str, Field(min_length=1)] = "auto"
    """The model that all of it changes; `auto` is what the adapters name."""
    adapters: Annotated[
        dict[str, Annotated[str, Field(min_length=1)]],
        Field(min_length=1, examples=["{chat: runs/chat}"]),
        Expected("a section of run folders, adapters or models such as `{chat: runs/chat}`"),
    ]
    """Names for the formula, and where each is: a run, an adapter or a fine-tuned model."""
    expression: Annotated[str, Field(min_length=1, examples=["chat + 0.7*code"])]
    """The formula, such as `chat + 0.7*code - 0.5*toxic`."""
    method: MergeMethod = SumMethod()
    """How the terms are added."""
    scale: tuple[ScaleSection, ...] = ()
    """By layer, on top of the formula's numbers; the first pattern that fits counts."""
    without: tuple[Pattern, ...] = ()
    """Patterns of names that are left out of every term, such as `*norm*` or `score*`."""
    heads: Heads = "error"
    """What happens where several terms bring a head of their own."""
    output: OutputSection = OutputSection()
    """What is written."""
    search: Annotated[
        SearchSection | None, Expected("a section such as `{over: {code: [0, 1.5]}}`, or `null`")
    ] = None
    """Seeks numbers of the formula instead of taking them as they are."""
    evaluate: JudgeSection = JudgeSection()
    """What the result is measured on."""

    @property
    def weights(self) -> dict[str, float]:
        """What each adapter of the formula is multiplied by."""
        return parse(self.expression, self.adapters)

    @model_validator(mode="after")
    def _that_fits_together(self) -> Self:
        if problems := dict(_problems(self)):
            raise refused(problems)
        return self


def _problems(recipe: MergeRecipe) -> Iterator[tuple[Place, str]]:
    try:
        weights = recipe.weights
    except RecipeError as problem:
        yield ("expression",), problem.message.removeprefix("expression: ")
        return
    for name in recipe.adapters:
        if not name.isidentifier() or keyword.iskeyword(name):
            yield ("adapters", name), "expected a name of letters, digits and `_`"
        elif name not in weights:
            yield ("adapters", name), f"`{name}` is not in the formula `{recipe.expression}`"
    for place, name in _named(recipe):
        if name not in weights:
            yield place, _no_term(name, list(weights))
    yield from _problems_of_search(recipe)


def _named(recipe: MergeRecipe) -> Iterator[tuple[Place, str]]:
    """Every place that names a term."""
    for number, scale in enumerate(recipe.scale):
        yield from ((("scale", number, "times", name), name) for name in scale.times)
    if isinstance(recipe.heads, KeepSection):
        yield ("heads", "keep"), recipe.heads.keep
    if recipe.search is not None:
        yield from ((("search", "over", name), name) for name in recipe.search.over)


def _problems_of_search(recipe: MergeRecipe) -> Iterator[tuple[Place, str]]:
    if (search := recipe.search) is None:
        return
    for name, bounds in search.over.items():
        if name in recipe.adapters and bounds[0] >= bounds[1]:
            yield ("search", "over", name), f"expected the smaller one first, got `{list(bounds)}`"
    tasks = list(recipe.evaluate.tasks)
    if search.objective not in tasks:
        near = did_you_mean(search.objective, tasks)
        yield ("search", "objective"), f"`evaluate.tasks` has no `{search.objective}`{near}"
    sets = [*tasks, *([CONTROL] if recipe.evaluate.control else [])]
    for name in search.subject_to:
        if name not in sets:
            told = f"`evaluate` has no `{name}`{did_you_mean(name, sets)}"
            yield ("search", "subject_to", name), told


def _no_term(name: str, terms: list[str]) -> str:
    near = did_you_mean(name, terms) or f"; expected one of {', '.join(f'`{t}`' for t in terms)}"
    return f"`{name}` is no term of the formula{near}"
