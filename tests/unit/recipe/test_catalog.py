"""The recipes that ship: described by their headers, found by name, copied whole or not at all."""

from pathlib import Path

import pytest

from peftkit.errors import RecipeError, WriteError
from peftkit.recipe import catalog
from peftkit.recipe.load import load_any, load_recipe
from peftkit.recipe.merge_schema import MergeRecipe

QUICK = """\
# yaml-language-server: $schema=recipe.schema.json
# Learn to rhyme,
# in a minute.
# Run:    peftkit finetune recipes/quick.yaml
# Needs:  1 GB of memory,
#         one core
# Expect: not measured
base: {model: builtin:tiny}
data: {train: rhymes/train.txt, test: [{source: hub:org/set@main:test}, missing.txt, ../beside.txt]}
"""
CHILD = """\
# Learn to rhyme better.
extends: ../_shared/parent.yaml
data: {train: ../rhymes, validation: {source: verses.txt}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of recipes such as a package ships."""
    files = {
        "quick.yaml": QUICK,
        "rhymes/train.txt": "cat\nhat\n",
        "rhymes/more/train.txt": "dog\nlog\n",
        "poems/child.yaml": CHILD,
        "poems/verses.txt": "roses\n",
        "_shared/_parent.yaml": "",
        "_shared/parent.yaml": "base: {model: builtin:tiny}\nevaluate: {remember: general.txt}\n",
        "_shared/general.txt": "text\n",
        "README.md": "no recipe",
    }
    for name, text in files.items():
        (tmp_path / "shelf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shelf" / name).write_text(text)
    (tmp_path / "beside.txt").write_text("ships with nobody\n")
    return tmp_path / "shelf"


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_header_describes_its_recipe(root: Path) -> None:
    names = [one.name for one in catalog.shipped(root)]
    assert names == ["poems/child", "quick"]
    quick = catalog.find("quick", root)
    assert quick.path == root / "quick.yaml"
    assert quick.purpose == "Learn to rhyme, in a minute."
    assert quick.run == "peftkit finetune recipes/quick.yaml"
    assert quick.needs == "1 GB of memory, one core"
    assert quick.expect == "not measured"
    assert catalog.find("poems/child", root).needs == ""


def test_an_unknown_name_is_answered_with_the_nearest(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"no shipped recipe `qiuck`; did you mean `quick`\?"):
        catalog.find("qiuck", root)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("quick", "quick"),
        ("quick.yaml", "quick"),
        ("recipes/poems/child.yaml", "poems/child"),
        ("elsewhere/child.yaml", None),
        ("other.yaml", None),
    ],
)
def test_a_path_may_mean_a_shipped_recipe(root: Path, path: str, name: str | None) -> None:
    assert catalog.name_of(Path(path), root) == name


def test_a_copy_brings_what_it_reads(root: Path, tmp_path: Path) -> None:
    copied = catalog.copy("quick", tmp_path / "mine", root)
    assert copied == tmp_path / "mine" / "quick.yaml"
    assert files_below(tmp_path / "mine") == ["quick.yaml", "rhymes/train.txt"]
    source = Path(load_recipe(copied).recipe.data.train[0].source)
    assert source == tmp_path / "mine" / "rhymes" / "train.txt"
    assert source.read_text() == "cat\nhat\n"


def test_a_copy_may_have_another_name(root: Path, tmp_path: Path) -> None:
    copied = catalog.copy("quick", tmp_path / "mine" / "first.yaml", root)
    assert files_below(tmp_path / "mine") == ["first.yaml", "rhymes/train.txt"]
    assert load_recipe(copied).recipe.name == "first"


def test_a_copy_brings_what_it_extends(root: Path, tmp_path: Path) -> None:
    copied = catalog.copy("poems/child", tmp_path / "mine", root)
    assert files_below(tmp_path / "mine") == [
        "_shared/general.txt",
        "_shared/parent.yaml",
        "poems/child.yaml",
        "poems/verses.txt",
        "rhymes/more/train.txt",
        "rhymes/train.txt",
    ]
    recipe = load_recipe(copied).recipe
    assert recipe.evaluate.remember[0].source == str(tmp_path / "mine/_shared/general.txt")
    with pytest.raises(RecipeError, match="so it needs a folder to go to") as caught:
        catalog.copy("poems/child", tmp_path / "child.yaml", root)
    assert caught.value.hint == f"`peftkit recipes copy poems/child {tmp_path / 'child'}`"


def test_nothing_is_overwritten(root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    catalog.copy("quick", mine, root)
    with pytest.raises(RecipeError, match=r"quick\.yaml exists already"):
        catalog.copy("quick", mine, root)
    (mine / "quick.yaml").unlink()
    (mine / "rhymes" / "train.txt").write_text("my own rows\n")
    with pytest.raises(RecipeError, match=r"train\.txt exists already"):
        catalog.copy("quick", mine, root)
    assert files_below(mine) == ["rhymes/train.txt"]
    assert (mine / "rhymes" / "train.txt").read_text() == "my own rows\n"


def test_data_that_is_there_already_is_shared(root: Path, tmp_path: Path) -> None:
    catalog.copy("poems/child", tmp_path / "mine", root)
    catalog.copy("quick", tmp_path / "mine", root)
    assert "quick.yaml" in files_below(tmp_path / "mine")


def test_a_destination_that_cannot_be_written_is_told(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"could not write .*quick\.yaml: "):
        catalog.copy("quick", tmp_path / "file", root)


@pytest.mark.parametrize("name", [one.name for one in catalog.shipped()])
def test_every_shipped_recipe_survives_copying(name: str, tmp_path: Path) -> None:
    one = catalog.find(name)
    copied = catalog.copy(name, tmp_path)
    assert load_any(copied).recipe.name == load_any(one.path).recipe.name
    for command in one.commands_for(copied):
        file = next(word for word in command.split() if word.endswith(".yaml"))
        assert Path(file).is_file()


def test_what_is_run_before_a_merge_comes_along(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    copied = catalog.copy("merging/negate-a-habit", mine)
    assert copied == mine / "recipes" / "merging" / "negate-a-habit.yaml"
    train, merge = catalog.find("merging/negate-a-habit").commands_for(copied)
    assert train == f"peftkit finetune {mine / 'recipes/merging/parts/shouts.yaml'}"
    assert merge == f"peftkit merge {copied}"
    loaded = load_any(copied).recipe
    assert isinstance(loaded, MergeRecipe)
    assert loaded.adapters == {"shouts": str(mine / "runs" / "shouts")}
    soup = catalog.copy("merging/soup", mine)
    commands = catalog.find("merging/soup").commands_for(soup)
    assert f"--out {mine / 'runs/shouts-fast'}" in commands[2]
    with pytest.raises(RecipeError, match="needs a folder"):
        catalog.copy("merging/soup", tmp_path / "soup.yaml")
    first = tmp_path / "first.yaml"
    assert catalog.find("quickstart").commands_for(first) == (f"peftkit finetune {first}",)
