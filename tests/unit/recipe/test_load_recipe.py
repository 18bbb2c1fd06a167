"""A recipe from file to `Recipe`: defaults, what it extends, `--set`, and paths."""

import os
from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe.load import load_recipe
from peftkit.recipe.schema import Recipe

SMALLEST = "base: {model: builtin:tiny}\ndata: {train: rows.jsonl}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, text: str = SMALLEST) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def problems(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.problems or (caught.value.message,)


def test_the_smallest_recipe_gets_every_default(here: Path) -> None:
    loaded = load_recipe(write("runs/small.yaml"))
    assert loaded.path == Path("runs/small.yaml")
    assert loaded.text == SMALLEST
    assert loaded.recipe.name == "small"
    assert loaded.recipe.base.model == "builtin:tiny"
    assert loaded.recipe.data.train[0].source == str(here / "runs/rows.jsonl")
    assert loaded.recipe.adapter.method == "lora"
    assert loaded.recipe.train.epochs == 3


def test_a_resolved_recipe_reads_back_as_itself() -> None:
    recipe = load_recipe(write("a.yaml"), ["adapter.alpha=8", "train.steps=7"]).recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my recipe (2).yaml", "my-recipe-2"),
        ("_hidden.yaml", "hidden"),
        ("数据.yaml", "recipe"),
        (f"{'x' * 150}.yaml", "x" * 96),
        ("a.b.yaml", "a.b"),
        ("noending", "noending"),
    ],
)
def test_the_name_is_the_stem_of_the_file(file: str, name: str) -> None:
    assert load_recipe(write(file)).recipe.name == name


def test_a_recipe_extends_another_key_by_key(here: Path) -> None:
    write("shared/parent.yaml", f"{SMALLEST}adapter: {{rank: 4, layers: [1, 2, 3]}}\nseed: 3\n")
    child = write("a.yaml", "extends: shared/parent.yaml\nadapter: {layers: [9], dropout: 0.1}\n")
    recipe = load_recipe(child).recipe
    assert (recipe.name, recipe.seed) == ("a", 3)
    assert recipe.adapter.rank == 4
    assert recipe.adapter.dropout == 0.1
    assert recipe.adapter.layers == (9,)  # a list is replaced, not added to
    assert recipe.data.train[0].source == str(here / "shared/rows.jsonl")


def test_a_name_is_not_inherited() -> None:
    write("parent.yaml", f"name: parent\n{SMALLEST}")
    assert load_recipe(Path("parent.yaml")).recipe.name == "parent"
    assert load_recipe(write("child.yaml", "extends: parent.yaml\n")).recipe.name == "child"


def test_another_method_starts_its_section_afresh() -> None:
    write("parent.yaml", f"{SMALLEST}adapter: {{rank: 4}}\n")
    child = write("child.yaml", "extends: parent.yaml\nadapter: {method: full}\n")
    assert load_recipe(child).recipe.adapter.method == "full"
    same = write("same.yaml", "extends: parent.yaml\nadapter: {method: lora, dropout: 0.1}\n")
    assert load_recipe(same).recipe.adapter.rank == 4
    assert load_recipe(Path("parent.yaml"), ["adapter.method=full"]).recipe.adapter.method == "full"


def test_a_chain_is_followed_and_each_problem_names_its_file() -> None:
    write("lib/grand.yaml", f"# one\n# two\n{SMALLEST}train: {{stepz: 3}}\n")
    write("lib/parent.yaml", "extends: grand.yaml\nadapter:\n  rnak: 3\n")
    child = write("child.yaml", "\nextends: lib/parent.yaml\nseed: -1\n")
    assert problems(child) == (
        "line 3: seed: expected a whole number of at least 0, got `-1`",
        "lib/parent.yaml line 3: adapter.rnak: unknown key; did you mean `rank`?",
        "grand.yaml line 5: train.stepz: unknown key; did you mean `steps`?",
    )


def test_a_value_that_is_laid_over_takes_its_place_in_messages() -> None:
    write("parent.yaml", f"{SMALLEST}train: {{steps: 0}}\n")
    child = write("child.yaml", "extends: parent.yaml\ntrain:\n  steps: -1\n")
    assert problems(child)[0].startswith("line 3: train.steps:")
    assert problems(child, "train.steps=x")[0].startswith("--set train.steps: expected")
    assert load_recipe(child, ["train.steps=5"]).recipe.train.steps == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("extends: none.yaml", "line 1: extends: no file at none.yaml"),
        ("\nextends: 3", "line 2: extends: expected the path of a recipe"),
        ("extends:", "line 1: extends: expected the path of a recipe"),
        (
            "extends: a.yaml",
            "line 1: extends: the files extend each other in a circle: a.yaml -> a.yaml",
        ),
        ("extends: b/c.yaml", "b/c.yaml line 1: extends: the files extend each other in a circle"),
        ("extends: ./d.yaml", "line 1: expected keys such as `base:`, got a list"),
    ],
)
def test_what_cannot_be_extended(text: str, problem: str) -> None:
    write("b/c.yaml", "extends: ../a.yaml")
    write("d.yaml", "[1]")
    assert problems(write("a.yaml", text))[0].startswith(problem)


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ("train.steps=7", ("train", "steps", 7)),
        ("train.learning_rate=1e-3", ("train", "learning_rate", 1e-3)),
        ("data.leakage=off", ("data", "leakage", "off")),
        ("data.packing=false", ("data", "packing", False)),
        ("adapter.targets=[q_proj, v_proj]", ("adapter", "targets", ("q_proj", "v_proj"))),
        ("seed = 3", ("seed", None, 3)),
        ("train={steps: 2, keep: 1}", ("train", "keep", 1)),
    ],
)
def test_set_changes_one_key(option: str, changed: tuple[str, str | None, object]) -> None:
    recipe = load_recipe(write("a.yaml"), [option]).recipe
    section, key, value = changed
    found = getattr(recipe, section)
    assert (found if key is None else getattr(found, key)) == value


def test_set_reaches_into_a_list_and_the_last_one_wins(here: Path) -> None:
    file = write(
        "a.yaml", "base: {model: m}\ndata: {train: [a.txt, {source: b.txt, format: text}]}"
    )
    recipe = load_recipe(
        file, ["data.train.1.format=chat", "data.train.0=c.txt", "seed=1", "seed=2"]
    )
    assert [source.format for source in recipe.recipe.data.train] == ["auto", "chat"]
    assert recipe.recipe.data.train[0].source == str(here / "c.txt")
    assert recipe.recipe.seed == 2


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("steps", "cannot read `--set steps`"),
        ("=3", "cannot read `--set =3`"),
        ("train..steps=3", "cannot read `--set train..steps=3`"),
        (f"{'a.' * 40}b=1", "cannot read `--set a.a.a."),
        ("extends=b.yaml", "`--set extends` is not possible"),
        ("train.steps=[1", "--set train.steps: expected ',' or ']'"),
        ("train.steps=1\n---\n2", "--set train.steps: a second document after `---`; keep one"),
        ("data.train.0.format=text", "`--set data.train.0.format` leads nowhere: `data.train` is"),
        (
            "adapter.layers.x=1",
            "`--set adapter.layers.x` leads nowhere: `adapter.layers` is a list",
        ),
        (
            "adapter.layers.2=1",
            "`--set adapter.layers.2` leads nowhere: `adapter.layers` has 2 ent",
        ),
        ("adapter.rnak=3", "--set adapter.rnak: unknown key; did you mean `rank`?"),
        ("adapter={rnak: 3}", "--set adapter: adapter.rnak: unknown key; did you mean `rank`?"),
        (
            "train.steps=",
            "--set train.steps: expected a whole number of at least 1 or `auto`, got n",
        ),
        (
            "data=",
            "--set data: expected a section such as `{train: data/train.jsonl}`, got nothing",
        ),
    ],
)
def test_set_says_what_it_cannot_do(option: str, problem: str) -> None:
    file = write("a.yaml", f"{SMALLEST}adapter: {{layers: [1, 2]}}\n")
    assert problems(file, option)[0].startswith(problem)


def test_paths_are_seen_from_the_file_they_are_in(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    (here / "lib/org/model").mkdir(parents=True)
    text = """
    base: {model: org/model}
    data:
      train: [a.txt, {source: ../b.txt}, /c.txt, ~/d.txt, "hub:org/set@main:train"]
      validation: {source: e.txt, columns: {source: f}}
      test: [builtin:shakespeare, "https://example.org/h.txt"]
    evaluate: {remember: [g.txt]}
    """
    recipe = load_recipe(write("lib/a.yaml", text)).recipe
    assert recipe.base.model == str(here / "lib/org/model")
    assert [source.source for source in recipe.data.train] == [
        str(here / "lib/a.txt"),
        str(here / "b.txt"),
        "/c.txt",
        "/home/someone/d.txt",
        "hub:org/set@main:train",
    ]
    assert recipe.data.validation.sources[0].source == str(here / "lib/e.txt")
    assert recipe.data.validation.sources[0].columns == {"source": "f"}
    assert [source.source for source in recipe.data.test] == [
        "builtin:shakespeare",
        "https://example.org/h.txt",
    ]
    assert recipe.evaluate.remember[0].source == str(here / "lib/g.txt")
    assert load_recipe(Path("lib/a.yaml"), ["data.test=h.txt"]).recipe.data.test[0].source == str(
        here / "h.txt"
    )


@pytest.mark.parametrize(
    ("model", "anchored"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("builtin:tiny", "builtin:tiny"),
        ("/models/m", "/models/m"),
        ("./model", "HERE/lib/model"),
        ("../model", "HERE/model"),
        ("a/b/c", "HERE/lib/a/b/c"),
        ("~nobody-of-this-name/m", "HERE/lib/~nobody-of-this-name/m"),
    ],
)
def test_a_base_is_a_folder_or_a_name(here: Path, model: str, anchored: str) -> None:
    text = f"base: {{model: '{model}'}}\ndata: {{train: a.txt}}\n"
    recipe = load_recipe(write("lib/a.yaml", text)).recipe
    assert recipe.base.model == anchored.replace("HERE", str(here))


def test_a_missing_recipe_is_answered_with_the_nearest() -> None:
    write("runs/shakespeare.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("runs/shakspeare.yaml"))
    assert caught.value.message == "no recipe at runs/shakspeare.yaml"
    assert caught.value.hint == "did you mean `runs/shakespeare.yaml`?"


@pytest.mark.parametrize("path", ["none.yaml", "no/such/folder/a.yaml", "x" * 5000, "a.yaml/b"])
def test_a_missing_recipe_has_a_hint(path: str) -> None:
    with pytest.raises(RecipeError, match="no recipe at") as caught:
        load_recipe(Path(path))
    assert caught.value.hint == "`peftkit recipes list` shows the recipes that ship"


def test_what_is_no_file_is_refused() -> None:
    write("folder/a.yaml")
    os.mkfifo("pipe")  # reading one would wait for ever
    with pytest.raises(RecipeError, match="folder is a folder, not a recipe") as caught:
        load_recipe(Path("folder"))
    assert caught.value.hint == "it holds folder/a.yaml"
    with pytest.raises(RecipeError, match="pipe is not a regular file"):
        load_recipe(Path("pipe"))
