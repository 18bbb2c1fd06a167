"""The terms of a merge as its recipe wants them: loaded, compared, weighed, with one head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, get_type_hints

from peftkit.errors import RecipeError
from peftkit.merge.combine import combine
from peftkit.merge.delta import PARTS, Delta
from peftkit.merge.heads import settle_heads
from peftkit.merge.methods.catalog import find_method
from peftkit.merge.methods.inputs import Inputs
from peftkit.merge.parents import Parent, find_parent, refuse_strangers
from peftkit.recipe.sections.merge import KeepSection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peftkit.recipe.merge_schema import MergeRecipe


@dataclass(frozen=True, slots=True)
class Terms:
    """What goes into a merge, by name, in the order of the formula."""

    parents: tuple[Parent, ...]
    deltas: dict[str, Delta]
    """As they are added up, but for the numbers of the formula."""
    given: dict[str, Delta]
    """As they were loaded, for comparing."""
    left_out: dict[str, list[str]]
    """By term: names of what was left out."""

    @property
    def base(self) -> str | None:
        """What they say that they change."""
        return next((d.facts["base"] for d in self.given.values() if d.facts.get("base")), None)


def base_of(recipe: MergeRecipe) -> str | None:
    """The base that a recipe names; None where the adapters are to say it."""
    return None if recipe.base == "auto" else recipe.base


def find_parents(recipe: MergeRecipe) -> tuple[Parent, ...]:
    """What the formula names, compared with each other.

    Raises:
        RecipeError: one is not there.
        InputError: two are of different bases, or of different tokenizers.
    """
    parents = tuple(find_parent(name, recipe.adapters[name]) for name in recipe.weights)
    refuse_strangers(parents, tokens_too=recipe.output.vocabulary == "same")
    return parents


def load_terms(recipe: MergeRecipe, parents: tuple[Parent, ...]) -> Terms:
    """The changes that a merge adds up.

    Raises:
        RecipeError: a pattern fits nothing, or the base of an adapter is not known.
        InputError: an adapter is damaged, is no vector, or brings a head that others bring too.
    """
    given = {each.name: _named(recipe, each.name) for each in parents}
    left, gone = _leave_out(given, recipe.without)
    scaled = {name: _scale(recipe, name, delta) for name, delta in left.items()}
    keep = recipe.heads.keep if isinstance(recipe.heads, KeepSection) else ""
    policy = "keep" if isinstance(recipe.heads, KeepSection) else recipe.heads
    return Terms(parents, settle_heads(scaled, policy, keep), given, gone)


def _named(recipe: MergeRecipe, name: str) -> Delta:
    """A change as the formula calls it: its folder may be called otherwise one day."""
    delta = Delta.load(recipe.adapters[name], base_of(recipe))
    return replace(delta, terms=tuple(replace(term, name=name) for term in delta.terms))


def mix(recipe: MergeRecipe, terms: Terms, weights: Mapping[str, float]) -> Delta:
    """What the formula gives, or what another method makes of its terms.

    Raises:
        RecipeError: the method cannot merge these, or its result must be cut and is not.
        InputError: a change is of a kind that the method knows nothing of.
    """
    settings = settings_of(recipe)
    method, deltas = find_method(recipe.method.name), terms.deltas
    if method.name == "sum":
        numbers = _normalized(weights) if settings["normalize"] else weights
        return sum((numbers[name] * deltas[name] for name in weights), start=Delta())
    cut = recipe.output.rank != "all" or recipe.output.energy != "all"
    if method.kind == "entry-wise" and not cut and recipe.output.form == "adapter":
        raise RecipeError(
            f"method `{method.name}` looks at single entries, so what it gives has full rank: how "
            "much of it shall the adapter keep?",
            hint="`--rank 16`, or `--energy 0.99`; the error is told",
        )
    changes, inputs = inputs_of(weights, deltas)
    return combine(method, settings, changes, inputs)


def settings_of(recipe: MergeRecipe) -> dict[str, Any]:
    """What the method is told; what it draws by chance is of the recipe's seed."""
    said = recipe.method.model_dump(exclude={"name"})
    draws = "seed" in get_type_hints(find_method(recipe.method.name).parameters)
    return said | ({"seed": recipe.seed} if draws else {})


def inputs_of(
    weights: Mapping[str, float], deltas: Mapping[str, Delta]
) -> tuple[list[Delta], Inputs]:
    """The changes of a formula as the methods want them."""
    digests = ["+".join(each.digest for each in deltas[name].terms) for name in weights]
    inputs = Inputs(tuple(weights.values()), tuple(weights), tuple(digests))
    return [deltas[name] for name in weights], inputs


def _normalized(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    negative = [f"`{name}` has {weight:g}" for name, weight in weights.items() if weight < 0]
    why = "the numbers add up to 0"
    if negative:
        why = f"{negative[0]}, and a mean takes no negative numbers"
    if negative or not total:
        raise RecipeError(
            f"method.normalize: {why}",
            hint="`normalize: false` adds and subtracts as the formula says",
        )
    return {name: weight / total for name, weight in weights.items()}


def _leave_out(
    terms: Mapping[str, Delta], patterns: Sequence[str]
) -> tuple[dict[str, Delta], dict[str, list[str]]]:
    """The terms without what the patterns fit, each of which has to fit something."""
    gone: dict[str, list[str]] = {}
    left = {}
    for name, delta in terms.items():
        every = [each for what in PARTS for each in getattr(delta, what)]
        fits = [p for p in patterns if any(fnmatchcase(each, p) for each in every)]
        gone[name] = [each for each in every if any(fnmatchcase(each, p) for p in fits)]
        left[name] = delta.without(*fits) if fits else delta
    every = [each for names in gone.values() for each in names]
    for pattern in patterns:
        if not any(fnmatchcase(each, pattern) for each in every):
            raise RecipeError(f"without: `{pattern}` fits nothing of any term")
    return left, gone


def _scale(recipe: MergeRecipe, name: str, delta: Delta) -> Delta:
    rules = rules_of(recipe, name)
    return delta.weigh(rules) if rules else delta


def rules_of(recipe: MergeRecipe, name: str) -> dict[str, float]:
    """By pattern, what a term is multiplied by; the first that fits counts."""
    rules: dict[str, float] = {}
    for rule in recipe.scale:
        if name in rule.times:
            rules.setdefault(rule.match, rule.times[name])
    return rules
