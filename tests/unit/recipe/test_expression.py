"""Formulas over adapters: what they add up to, and what is none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.errors import RecipeError
from peftkit.recipe.expression import explain, parse

NAMES = ("chat", "code", "toxic")


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("chat", {"chat": 1}),
        ("chat + 0.7*code - 0.5*toxic", {"chat": 1, "code": 0.7, "toxic": -0.5}),
        ("chat + (code - toxic)", {"chat": 1, "code": 1, "toxic": -1}),
        ("-(chat - 2*code)/4", {"chat": -0.25, "code": 0.5}),
        ("(chat + code)/2", {"chat": 0.5, "code": 0.5}),
        ("2*(3*chat)*0.5", {"chat": 3}),
        ("chat - chat", {"chat": 0}),
        ("+chat*1e-3", {"chat": 1e-3}),
        ("chat + 1 - 1", {"chat": 1}),
    ],
)
def test_a_formula_is_a_number_for_each_adapter(text: str, weights: dict[str, float]) -> None:
    found = parse(text, NAMES)
    assert found == pytest.approx(weights)
    assert list(found) == list(weights)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("chat + cod", "no adapter is called `cod`; did you mean `code`"),
        ("chat * code", "not by each other"),
        ("chat / code", "divides by zero, or by an adapter"),
        ("chat / 0", "divides by zero"),
        ("chat + 1", "the number 1 stands alone"),
        ("chat ** 2", "may use"),
        ("chat.code", "neither a number nor an adapter"),
        ("__import__('os')", "neither a number nor an adapter"),
        ("chat if code else toxic", "neither"),
        ("True * chat", "neither"),
        ("'chat'", "neither"),
        ("chat +", "cannot be read from character"),
        ("", "cannot be read"),
        ("chat code", "cannot be read"),
        ("1e999*chat", "not finite"),
        ("1e200*1e200*chat", "not finite"),
        ("3", "stands alone"),
        ("0", "names no adapter"),
        ("-" * 1900 + "chat", "nested too deeply"),
        ("chat" + "+chat" * 500, "longer than 2000"),
    ],
)
def test_what_is_no_sum_of_adapters_is_refused(text: str, why: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        parse(text, NAMES)
    assert why in refusal.value.message


def test_the_formula_is_told_with_its_numbers() -> None:
    weights = {"chat": 1.0, "code": 0.7, "toxic": -0.5}
    assert explain(weights) == "1*chat + 0.7*code - 0.5*toxic"
    assert explain({"toxic": -0.5, "chat": 1.0}) == "-0.5*toxic + 1*chat"


Number = st.floats(-8, 8, allow_nan=False).map(lambda x: round(x, 3))
Tree = st.recursive(
    st.sampled_from(NAMES).map(lambda name: (name, {name: 1.0})),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]} - {p[1][0]})", add(p[0][1], p[1][1]))),
        st.tuples(Number, inner).map(
            lambda p: (f"({p[0]}) * {p[1][0]}", {n: p[0] * w for n, w in p[1][1].items()})
        ),
    ),
    max_leaves=6,
)


def add(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {n: one.get(n, 0.0) - other.get(n, 0.0) for n in {**one, **other}}


@given(Tree)
def test_any_formula_says_what_it_would_by_hand(tree: tuple[str, dict[str, float]]) -> None:
    text, weights = tree
    found = parse(text, NAMES)
    assert all(math.isclose(found[n], weights[n], abs_tol=1e-9) for n in weights)
    assert parse(explain(found), NAMES) == pytest.approx(found, rel=1e-5, abs=1e-9)
