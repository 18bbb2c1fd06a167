"""What a recipe says of its adapter: words that are nearly right, and the folder it stands on."""

from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe.load import load_recipe
from peftkit.recipe.lock import difference, digest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    written = folder / "recipe.yaml"
    written.write_text(
        "base: {model: builtin:tiny}\n"
        "data: {train: rows.jsonl}\n"
        "adapter: {method: lora, under: ../runs/domain}\n"
    )
    return written


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("adapter.method=loar", "`loar` is not known; did you mean `lora`?"),
        ("adapter.method=bitfitt", "`bitfitt` is not known; did you mean `bitfit`?"),
        ("adapter.method=nothing-like-it", "expected `lora`, "),
        ("adapter.variant=rslroa", "`rslroa` is not known; did you mean `rslora`?"),
        ("adapter.variant=nothing-like-it", "expected `plain`, `rslora`, `dora`, "),
        ("adapter.layers=uper-half", "`uper-half` is not known; did you mean `upper-half`?"),
        ("adapter.under=3", "expected `none`, or an adapter folder or a run folder, got `3`"),
    ],
)
def test_a_word_that_is_not_known_is_told_with_the_nearest(
    path: Path, setting: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as refusal:
        load_recipe(path, [setting])
    key = setting.partition("=")[0]
    assert refusal.value.problems[0].startswith(f"--set {key}: {sentence}")


def test_what_stands_under_is_found_from_the_recipe(path: Path, tmp_path: Path) -> None:
    assert load_recipe(path).recipe.adapter.under == str(tmp_path / "runs" / "domain")
    assert load_recipe(path, ["adapter.under=none"]).recipe.adapter.under == "none"
    typed = load_recipe(path, ["adapter.under=runs/other"]).recipe.adapter.under
    assert typed == str(Path.cwd() / "runs" / "other")  # seen from where it was typed
    path.write_text("base: {model: builtin:tiny}\ndata: {train: rows.jsonl}\n")
    assert load_recipe(path).recipe.adapter.under == "none"


def test_where_it_lies_may_change_but_not_what_it_is_called(path: Path, tmp_path: Path) -> None:
    here = load_recipe(path).recipe
    moved = load_recipe(path, [f"adapter.under={tmp_path}/elsewhere/domain"]).recipe
    other = load_recipe(path, [f"adapter.under={tmp_path}/runs/other"]).recipe
    assert digest(here) == digest(moved) != digest(other)
    assert difference(here.model_dump(mode="json"), other.model_dump(mode="json")) == [
        "adapter.under: domain -> other"
    ]


@pytest.mark.parametrize("turned", [False, True])
def test_what_every_method_knows_outlives_another_method(path: Path, *, turned: bool) -> None:
    settings = ["adapter.under=earlier", "adapter.method=ia3"]
    recipe = load_recipe(path, settings[::-1] if turned else settings).recipe
    assert recipe.adapter.method == "ia3"
    assert Path(recipe.adapter.under).name == "earlier"
