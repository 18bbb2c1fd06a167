"""What a recipe may add to its loss, and what is refused with its line."""

from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe.load import load_recipe
from peftkit.recipe.lock import digest
from peftkit.recipe.schema import Recipe
from peftkit.recipe.sections.regularize import KINDS, acting, general_sources

SOURCE = "source: general.txt"
EVERY = (
    f"[{{l2sp: 0.01}}, {{ewc: {{strength: 1000, {SOURCE}, rows: 64}}}}, "
    f"{{kl: {{strength: 0.1, {SOURCE}, top: 20}}}}, {{r_drop: 1.0}}, {{neftune: 5}}, "
    "{label_smoothing: 0.1}, {decay_to_init: 0.01}]"
)


def load(folder: Path, entries: str, *, base: str = "builtin:tiny", more: str = "") -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(
        f"base: {{model: {base}}}\ndata: {{train: rows.jsonl}}\n{more}"
        f"train:\n  regularize: {entries}\n"
    )
    return load_recipe(path).recipe


def refused(folder: Path, entries: str, *, base: str = "builtin:tiny", more: str = "") -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, entries, base=base, more=more)
    (problem,) = caught.value.problems
    line = 4 + more.count("\n")
    assert problem.startswith(f"line {line}: train.regularize")
    return problem.partition("train.regularize")[2]


def test_every_entry_may_stand_together(tmp_path: Path) -> None:
    recipe = load(tmp_path, EVERY)
    found = acting(recipe.train.regularize)
    assert sorted(found) == sorted(KINDS)
    assert found["l2sp"].strength == 0.01
    assert found["neftune"].strength == 5
    assert (found["ewc"].rows, found["kl"].rows, found["kl"].top) == (64, 4, 20)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_sources_are_seen_from_the_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, EVERY)
    sources = general_sources(recipe.train.regularize)
    assert list(sources) == ["ewc", "kl"]
    assert {each.source for each in sources.values()} == {str(tmp_path / "general.txt")}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert digest(load(elsewhere, EVERY)) == digest(recipe)


def test_strength_0_asks_for_nothing(tmp_path: Path) -> None:
    recipe = load(tmp_path, f"[{{l2sp: 0}}, {{ewc: {{strength: 0, {SOURCE}}}}}]")
    assert acting(recipe.train.regularize) == {}
    assert general_sources(recipe.train.regularize) == {}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            "[{ewc: 1000}]",
            ".0.ewc.source: required key is missing; for example `source: general.txt`",
        ),
        ("[{kl: 1}]", ".0.kl.source: required key is missing; for example `source: general.txt`"),
        ("[{l2ps: 1}]", ".0: `l2ps` is not known; did you mean `l2sp`?"),
        ("[{l2sp: {strength: 1, haed: 2}}]", ".0.l2sp.haed: unknown key; did you mean `head`?"),
        ("[{l2sp: 1}, {l2sp: 2}]", ": `l2sp` stands there twice; keep one"),
        ("[{r_drop: 1}, {l2sp: -1}]", ".1.l2sp: expected a strength such as `0.1`"),
        ("[{label_smoothing: 1}]", ".0.label_smoothing: expected a strength such as `0.1`"),
        ("[l2sp]", ".0: expected one of `l2sp`, `ewc`"),
        ("[{l2sp: 1, r_drop: 1}]", ".0: expected one of `l2sp`, `ewc`"),
        ("{l2sp: 1}", ": expected a list such as `[{l2sp: 0.01}"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, entries: str, said: str) -> None:
    assert refused(tmp_path, entries).startswith(said)


@pytest.mark.parametrize("kind", ["ewc", "l2sp"])
@pytest.mark.parametrize("adapter", ["{method: ia3}", "{method: prefix}", "{variant: dora}"])
def test_what_is_no_change_of_weights_has_no_size(tmp_path: Path, kind: str, adapter: str) -> None:
    entry = f"[{{{kind}: {{strength: 1{', ' + SOURCE if kind == 'ewc' else ''}}}}}]"
    problem = refused(tmp_path, entry, more=f"adapter: {adapter}\n")
    assert problem.startswith(f".0.{kind}: what `")
    assert problem.endswith("`decay_to_init` pulls its parameters to where they started")


@pytest.mark.parametrize("task", ["regression", "embedding", "multi-label"])
def test_tasks_without_classes_have_none_to_spread_over(tmp_path: Path, task: str) -> None:
    base = f"m, task: {task}"
    for kind in ("r_drop", "label_smoothing"):
        problem = refused(tmp_path, f"[{{{kind}: 0.1}}]", base=base)
        assert problem == f".0.{kind}: it is for tasks with classes, and this is {task}"


def test_a_new_head_says_nothing_of_general_text(tmp_path: Path) -> None:
    base = "m, task: classification"
    for kind in ("ewc", "kl"):
        problem = refused(tmp_path, f"[{{{kind}: {{strength: 1, {SOURCE}}}}}]", base=base)
        assert problem.startswith(f".0.{kind}: the base answers classification with a head that")
    assert load(tmp_path, "[{l2sp: {strength: 1, head: 0.1}}, {r_drop: 1}]", base=base)
