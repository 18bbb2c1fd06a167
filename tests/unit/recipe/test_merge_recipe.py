"""A merge from file to `MergeRecipe`: what it may say, and every mistake with its line."""

from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe.load import load_any, load_merge, load_recipe, make_merge
from peftkit.recipe.merge_schema import MergeRecipe

WHOLE = """\
adapters: {chat: ../runs/chat, code: "hub:org/code@abc"}
expression: chat + 0.7*code
method: {name: ties, keep: 0.3}
scale: [{match: "*.mlp.*", times: {code: 0.5}}]
output: {as: weights}
evaluate: {tasks: {code: {source: code.jsonl}, chat: chat.jsonl}, control: general.txt}
search: {over: {code: [0, 1.5]}, objective: code, subject_to: {control: 0.95}}
"""


@pytest.fixture
def merge(tmp_path: Path) -> Path:
    folder = tmp_path / "merges"
    folder.mkdir()
    path = folder / "both.yaml"
    path.write_text(WHOLE)
    return path


def problems(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_merge(path, overrides)
    assert caught.value.hint is not None
    assert "peftkit schema --merge" in caught.value.hint
    return caught.value.problems


def test_a_merge_gets_every_default_and_its_paths(merge: Path) -> None:
    loaded = load_merge(merge)
    recipe = loaded.recipe
    assert (loaded.text, recipe.name, recipe.base, recipe.heads) == (WHOLE, "both", "auto", "error")
    assert recipe.adapters["chat"] == str(merge.parents[1] / "runs/chat")
    assert recipe.adapters["code"] == "hub:org/code@abc"
    assert recipe.weights == {"chat": 1.0, "code": 0.7}
    found = recipe.evaluate
    sources = [*found.tasks["code"], *found.tasks["chat"], *found.control]
    names = ("code.jsonl", "chat.jsonl", "general.txt")
    assert [one.source for one in sources] == [str(merge.parent / name) for name in names]
    assert recipe.output.form == "weights"


def test_a_resolved_merge_reads_back_as_itself(merge: Path) -> None:
    recipe = load_merge(merge, ["output.as=adapter", "output.rank=4"]).recipe
    assert MergeRecipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe.model_dump()["output"]["as"] == "adapter"


def test_another_method_starts_its_section_afresh(merge: Path) -> None:
    assert load_merge(merge, ["method.keep=0.4"]).recipe.method.model_dump()["keep"] == 0.4
    assert load_merge(merge, ["method=tsv"]).recipe.method.name == "tsv"
    assert load_merge(merge, ["method={name: tsv}"]).recipe.expression == "chat + 0.7*code"
    child = merge.with_name("child.yaml")
    child.write_text("extends: both.yaml\nmethod: {name: dare}\n")
    recipe = load_merge(child).recipe
    assert (recipe.method.name, recipe.name) == ("dare", "child")
    assert recipe.weights == {"chat": 1.0, "code": 0.7}


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("density=3", "density: unknown key; did you mean `method.keep`?"),
        ("merge_method=ties", "merge_method: unknown key; did you mean `method.name`?"),
        ("train={}", "train: unknown key; a merge trains nothing"),
        ("outptu={}", "outptu: unknown key; did you mean `output`?"),
        ("method=tise", "method.name: `tise` is not known; did you mean `ties`?"),
        ("method.kepe=1", "method.kepe: unknown key; did you mean `keep`?"),
        ("method.keep=2", "method.keep: expected a number of at least 0 and of at most 1, got `2`"),
        ("expression=chat + cod", "expression: `chat + cod`: no adapter is called `cod`"),
        ("expression='1 + 2'", "expression: `1 + 2`: the number 3 stands alone"),
        ("expression='chat - chat * 1e999'", "expression: `chat - chat * 1e999`: a number in it"),
        ("expression=chat", "adapters.code: `code` is not in the formula `chat`"),
        ("adapters.my-code=x", "adapters.my-code: expected a name of letters, digits and `_`"),
        ("adapters.lambda=x", "adapters.lambda: expected a name of letters, digits and `_`"),
        ("scale.0.times.cod=1", "scale.0.times.cod: `cod` is no term of the formula; did you mean"),
        ("heads={keep: me}", "heads.keep: `me` is no term of the formula; expected one of `chat`"),
        ("heads=drpo", "heads: `drpo` is not known; did you mean `drop`?"),
        ("output={rank: 3, energy: 0.9}", "output: either `rank` or `energy` says where to cut"),
        ("output.dtype=float16", "output: `dtype` is that of an adapter"),
        ("search.over.code=[2, 1]", "search.over.code: expected the smaller one first"),
        ("search.over.cod=[0, 1]", "search.over.cod: `cod` is no term of the formula"),
        ("search.objective=cod", "search.objective: `evaluate.tasks` has no `cod`; did you mean"),
        ("search.subject_to={contrl: 1}", "search.subject_to.contrl: `evaluate` has no `contrl`"),
    ],
)
def test_mistakes_are_told_with_their_place(merge: Path, option: str, problem: str) -> None:
    place = f"--set {option.partition('=')[0]}"
    told = problems(merge, option)
    assert any(problem in each for each in told), told
    assert all(each.startswith((place, "line ")) for each in told)


def test_all_mistakes_are_told_at_once(merge: Path) -> None:
    merge.write_text("adapters: {chat: 3}\nexpresion: chat\nmethod: {nmae: ties}\nseed: -1\n")
    assert problems(merge) == (
        "line 1: adapters.chat: expected text, got `3`; put it in quotes",
        "line 2: expresion: unknown key; did you mean `expression`?",
        "line 3: method.nmae: unknown key; did you mean `name`?",
        "line 4: seed: expected a whole number of at least 0, got `-1`",
    )


def test_the_two_kinds_of_recipes_are_told_apart(merge: Path) -> None:
    assert load_any(merge).recipe == load_merge(merge).recipe
    with pytest.raises(RecipeError) as caught:
        load_recipe(merge)
    assert any("`peftkit merge` takes them" in each for each in caught.value.problems)
    trains = merge.with_name("trains.yaml")
    trains.write_text("base: {model: builtin:tiny}\ndata: {train: rows.jsonl}\n")
    assert load_any(trains).recipe == load_recipe(trains).recipe


def test_what_was_typed_as_options_is_checked_as_a_file_is() -> None:
    values = {"name": "a", "adapters": {"a": "x"}, "expression": "a", "output": {"rank": 0}}
    with pytest.raises(RecipeError) as caught:
        make_merge(values, {("output", "rank"): "--rank"})
    (problem,) = caught.value.problems
    assert problem.startswith("--rank: output.rank: expected `all` or a whole number of at least 1")
    values["output"] = {"rank": 2}
    recipe = make_merge(values, {}, ["output.rank=3"])
    assert (recipe.output.rank, recipe.adapters) == (3, {"a": str(Path.cwd() / "x")})
