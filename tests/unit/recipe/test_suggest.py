"""Whatever is wrong with a recipe becomes sentences, each about one place, none of pydantic's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftkit.errors import RecipeError
from peftkit.recipe import other_tools, shape
from peftkit.recipe.kinds import MERGE, RECIPE, Kind
from peftkit.recipe.load import load_recipe
from peftkit.recipe.schema import Recipe
from peftkit.recipe.spelling import dotted, flow, nearest, shown

PLACE = r"(line \d+|--set [\w.-]+): "
OF_PYDANTIC = re.compile(r"[Ii]nput should|literal\[|constrained-|Section\b|valid (integer|number)")

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)
keys = st.sampled_from([*shape.owners(Recipe), *other_tools.KEYS, *other_tools.ADVICE]) | texts
words = st.sampled_from(
    ["auto", "lora", "full", "cosin", "many", "1_000", "2e-4", "true", "all", "random", "a.txt", ""]
)
scalars = st.none() | st.booleans() | st.integers(-2, 9) | st.floats(-1, 2, allow_nan=False) | words
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
top_keys = st.sampled_from(list(Recipe.model_fields)) | keys


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "recipe.yaml"


@settings(max_examples=300)
@given(content=st.dictionaries(top_keys, values, max_size=6))
def test_any_mistake_is_told_in_a_sentence(recipe: Path, content: dict[str, Any]) -> None:
    """Beside a mistake that is always there; each problem is one line with a place."""
    recipe.write_text(json.dumps({**content, "a mistake": 1}, indent=1), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    problems = caught.value.problems
    assert sum("a mistake: unknown key; expected `name`" in problem for problem in problems) == 1
    assert len(set(problems)) == len(problems)
    for problem in problems:
        assert re.match(PLACE, problem)
        assert "\n" not in problem
        assert not OF_PYDANTIC.search(problem)


@pytest.mark.parametrize(
    ("kind", "ours"),
    [(kind, ours) for kind in (RECIPE, MERGE) for ours in sorted(set(kind.habits.values()))],
)
def test_what_other_tools_say_has_a_place_here(kind: Kind, ours: str) -> None:
    section, _, key = ours.rpartition(".")
    assert section in [owner.path for owner in shape.owners(kind.schema)[key]]


@pytest.mark.parametrize(("kind", "least"), [(RECIPE, 40), (MERGE, 12)])
def test_no_key_of_another_tool_hides_one_of_ours(kind: Kind, least: int) -> None:
    assert len(kind.habits) >= least
    assert not (kind.habits.keys() | kind.advice.keys()) & shape.owners(kind.schema).keys()


def test_every_key_has_an_owner() -> None:
    assert [owner.path for owner in shape.owners(Recipe)["alpha"]] == ["adapter"]
    assert [owner.tag for owner in shape.owners(Recipe)["rank"]] == ["lora", "vera"]
    assert [owner.path for owner in shape.owners(Recipe)["source"]] == [
        "data.train",
        "data.replay",
        "data.validation.sources",
        "train.regularize.ewc",
        "train.regularize.kl",
    ]
    assert [owner.path for owner in shape.owners(Recipe)["rows"]] == [
        "train.batch",
        "train.regularize.ewc",
        "train.regularize.kl",
        "evaluate",
    ]
    assert shape.owners(Recipe)["seed"][0].path == ""


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (("seed",), "a whole number of at least 0"),
        (("train", "steps"), "a whole number of at least 1 or `auto`"),
        (("train", "warmup"), "a number of at least 0 and below 1"),
        (("data", "packing"), "`true` or `false`"),
        (("base",), "a section such as `{model: builtin:tiny}`"),
        (("train",), "a section of keys"),
        (("adapter", "lora", "layers"), "`all`, `upper-half` or a list of whole numbers of at le"),
    ],
)
def test_the_schema_describes_what_may_stand_somewhere(
    place: tuple[str, ...], sentence: str
) -> None:
    annotation: Any = Recipe
    for part in place:
        annotation, _ = shape.descend(annotation, part)
    assert shape.describe(annotation).startswith(sentence)


def test_a_label_of_pydantic_is_no_key() -> None:
    steps, is_key = shape.descend(shape.field_of(Recipe, "train"), "steps")
    assert is_key
    assert shape.descend(steps, "constrained-int") == (steps, False)
    lora, is_key = shape.descend(shape.field_of(Recipe, "adapter"), "lora")
    assert (lora.__name__, is_key) == ("LoraSection", False)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("rnak", "rank"), ("RANK", "rank"), ("alfa", "alpha"), ("qqq", None), ("", None)],
)
def test_the_nearest_word(word: str, meant: str | None) -> None:
    assert nearest(word, ["rank", "alpha", "dropout"]) == meant


def test_the_nearest_word_keeps_its_case() -> None:
    assert nearest("readme", ["README", "LICENSE"]) == "README"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        ("", "an empty text"),
        (True, "`true`"),
        ((1, ("a", None), {"b": 0.5}), "`[1, [a, null], {b: 0.5}]`"),
        ("two\nlines", "`two\\nlines`"),
        ("x" * 61, f"`{'x' * 60}…`"),
        ("\x1b[31m", "`\\x1b[31m`"),
    ],
)
def test_a_value_is_shown_on_one_short_line(value: Any, text: str) -> None:
    assert shown(value) == text


def test_values_are_spelled_as_yaml() -> None:
    assert flow({"a": [1, True], "b": {}}) == "{a: [1, true], b: {}}"
    assert dotted(("data", "train", 0, "source")) == "data.train.0.source"
