"""The catalog says what a method is for, and refuses what it cannot do before anything is read."""

import math
import re
from dataclasses import asdict, fields
from typing import Any

import pytest

from peftkit.errors import RecipeError
from peftkit.merge.methods.catalog import METHODS, find_method
from peftkit.merge.methods.inputs import Inputs
from peftkit.recipe.sections.merge_methods import MergeMethod
from peftkit.recipe.shape import members


def inputs(*weights: float) -> Inputs:
    names = tuple(f"adapter-{place}" for place in range(len(weights)))
    return Inputs(weights, names, names)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is_for_and_where_it_is_from(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert re.fullmatch(r"[A-Z][^\n]{10,100}\.", method.purpose)
    assert method.reference.paper
    assert 1970 < method.reference.year < 2030
    assert re.fullmatch(r"(\d{4}\.\d{5})?", method.reference.arxiv)
    assert all(not limit[0].isupper() and not limit.endswith(".") for limit in method.limits)
    assert method.read({}) == method.parameters()


def test_every_kind_is_there() -> None:
    kinds = [method.kind for method in METHODS.values()]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {
        "core": 8,
        "data": 3,
        "entry-wise": 13,
        "gram": 3,
    }


def test_an_unknown_method_is_told_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no method `tie@paper`; did you mean `ties@paper`"):
        find_method("tie@paper")


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("ties", {"keep": 1.5}, "keep: expected a number: at least 0 and at most 1, got `1.5`"),
        (
            "ties",
            {"keep": math.nan},
            "keep: expected a number: at least 0 and at most 1, got `nan`",
        ),
        ("ties", {"keep": True}, "keep: expected a number: at least 0 and at most 1, got `true`"),
        ("ties", {"keep": "0.2"}, "keep: expected a number: at least 0 and at most 1, got `0.2`"),
        ("ties", {"density": 0.2}, "density: unknown key; expected `keep`, `scope`, `elect`"),
        ("ties", {"kepe": 0.2}, "kepe: unknown key; did you mean `keep`?"),
        ("ties", {"scope": "layer"}, "scope: expected one of `model`, `tensor`, `row`"),
        ("ties", {"elect": "mass"}, "elect: expected keys, got `mass`"),
        ("ties", {"elect": {"by": "size"}}, "by: expected one of `mass`, `count`, got `size`"),
        ("ties", {"elect": {"bye": "mass"}}, "bye: unknown key; did you mean `by`?"),
        ("ties@paper", {"scope": "tensor"}, "scope: unknown key; expected `keep`, `scaling`"),
        ("dare", {"keep": 0}, "keep: expected a number: more than 0 and at most 1, got `0`"),
        ("dare", {"seed": 1.5}, "seed: expected a whole number: at least 0, got `1.5`"),
        ("dare", {"seed": -1}, "seed: expected a whole number: at least 0, got `-1`"),
        ("sum", {"normalize": 1}, "normalize: expected `true` or `false`, got `1`"),
        ("sum", {"lambda": 0.3}, "lambda: unknown key; expected `normalize`"),
        ("task-arithmetic", {"lambda": math.inf}, "scaling: expected a number, got `inf`"),
        ("slerp", {"t": 0.5}, "t: unknown key; expected nothing"),
    ],
)
def test_what_a_method_is_told_is_checked(name: str, given: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_method(name).read(given)
    assert caught.value.message == f"method `{name}` cannot be used like this"
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        find_method("breadcrumbs").read({"keep": 2, "top": -1, "scope": 3})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "keep",
        "top",
        "scope",
    ]


def test_lambda_is_the_scaling() -> None:
    told = find_method("ties").read({"lambda": 0.3, "elect": {"by": "count"}})
    shown = {each.name: getattr(told, each.name) for each in fields(told)}
    assert shown["scaling"] == 0.3
    assert shown["elect"].by == "count"


def test_a_window_beyond_0_or_1_is_refused() -> None:
    della = find_method("della")
    with pytest.raises(RecipeError, match=r"probabilities from 0\.75 to 1\.05"):
        della.function(della.read({"keep": 0.9, "window": 0.3}))


@pytest.mark.parametrize(
    ("name", "weights", "problem"),
    [
        ("slerp", (1.0,), "expected exactly 2 adapters, got 1"),
        ("slerp", (1.0, 1.0, 1.0), "expected exactly 2 adapters, got 3"),
        ("model-stock", (1.0,), "expected at least 2 adapters, got 1"),
        ("karcher", (1.0, -1.0), "`adapter-1` has the weight `-1`; expected more than 0"),
        ("ties@mergekit", (1.0, 0.0), "`adapter-1` has the weight `0`; expected more than 0"),
        ("wudi", (1.0, 0.5), "the method finds weights of its own; expected 1"),
    ],
)
def test_inputs_that_a_method_cannot_merge_are_refused(
    name: str, weights: tuple[float, ...], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        find_method(name).check(inputs(*weights))


@pytest.mark.parametrize(
    ("weights", "names", "digests", "problem"),
    [
        ((1.0,), ("a", "b"), ("x", "y"), "2 names, 1 weights and 2 digests"),
        ((1.0, 1.0), ("a", "a"), ("x", "y"), "`a` is named twice"),
        ((1.0, math.nan), ("a", "b"), ("x", "y"), "`b`: expected a finite weight, got `nan`"),
        ((1.0, math.inf), ("a", "b"), ("x", "y"), "`b`: expected a finite weight, got `inf`"),
        ((), (), (), "nothing to merge"),
    ],
)
def test_bad_inputs_are_refused(
    weights: tuple[float, ...], names: tuple[str, ...], digests: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        Inputs(weights, names, digests)


def test_a_recipe_names_what_the_catalog_has() -> None:
    """But what needs data; of a draw by chance the seed is the recipe's own."""
    sections = dict(members(MergeMethod))
    assert set(sections) == {name for name, method in METHODS.items() if method.kind != "data"}
    for name, section in sections.items():
        said = section(name=name).model_dump(exclude={"name"})
        told = asdict(METHODS[name].parameters())  # type: ignore[call-overload]
        assert said == {key: value for key, value in told.items() if key != "seed"}, name
        assert (section.__doc__ or "").partition("\n")[0].startswith(METHODS[name].purpose[:-1])
