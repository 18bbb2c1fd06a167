"""What a recipe may say of a quantized base, and what is refused before anything is loaded."""

from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe.load import load_recipe
from peftkit.recipe.quantized import EXACT
from peftkit.recipe.schema import Recipe

DATA = "data: {train: rows.jsonl}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text + DATA)
    return path


def problems(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as refusal:
        load_recipe(path, overrides)
    assert refusal.value.hint
    return refusal.value.problems


def test_qlora_is_lora_on_a_base_in_4_bits(tmp_path: Path) -> None:
    path = write(tmp_path, "base: {model: m}\nadapter: {method: qlora, rank: 3, variant: dora}\n")
    recipe = load_recipe(path).recipe
    said = recipe.model_dump(mode="json")
    assert said["adapter"]["method"] == "lora"
    assert said["adapter"]["rank"] == 3
    assert said["adapter"]["variant"] == "dora"
    assert said["base"]["quantize"] == "nf4"
    assert said["base"]["double_quant"] is True
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_qlora_keeps_what_a_recipe_says_of_lora(tmp_path: Path) -> None:
    write(tmp_path, "base: {model: m}\nadapter: {method: lora, rank: 3}\n")
    child = tmp_path / "child.yaml"
    child.write_text("extends: recipe.yaml\nadapter: {method: qlora}\n")
    for recipe in (
        load_recipe(child).recipe,
        load_recipe(tmp_path / "recipe.yaml", ["adapter.method=qlora"]).recipe,
    ):
        assert (recipe.adapter.method, recipe.base.quantize) == ("lora", "nf4")
        assert recipe.adapter.rank == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("quantize", ["none", "fp4", "int8"])
def test_qlora_on_another_base_is_refused_with_the_way_out(tmp_path: Path, quantize: str) -> None:
    path = write(
        tmp_path, f"base:\n  model: m\n  quantize: {quantize}\nadapter: {{method: qlora}}\n"
    )
    (problem,) = problems(path)
    assert problem.startswith("line 3: base.quantize: ")
    assert f"`adapter.method: lora` goes with `{quantize}`" in problem
    allowed = load_recipe(path, ["adapter.method=lora"]).recipe
    assert allowed.base.quantize == quantize


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("base: {model: m, double_quant: false}\n", "base.double_quant", "only bases in 4 bits"),
        (
            "base: {model: m, quantize: int8, double_quant: false}\n",
            "base.double_quant",
            "only bases in 4 bits",
        ),
        ("base: {model: m, quantize: nf4, weights: random}\n", "base.weights", "freezes them"),
        (
            "base: {model: m, quantize: nf4}\nadapter: {method: full}\n",
            "adapter.method",
            "`lora` trains beside them",
        ),
        (
            "base: {model: m, quantize: int8}\nadapter: {method: top}\n",
            "adapter.method",
            "`lora` trains beside them",
        ),
        (
            "base: {model: m, quantize: int8}\nadapter: {variant: dora}\n",
            "adapter.variant",
            "`base.quantize: nf4` goes with it",
        ),
    ],
)
def test_what_cannot_work_is_told_with_its_line(
    tmp_path: Path, text: str, place: str, why: str
) -> None:
    (problem,) = problems(write(tmp_path, text))
    assert problem.startswith(f"line {1 + place.startswith('adapter')}: {place}: ")
    assert why in problem


def test_everything_is_told_at_once(tmp_path: Path) -> None:
    text = "base: {model: m, quantize: fp4, weights: random}\nadapter: {method: full}\n"
    assert len(problems(write(tmp_path, text))) == 2


@pytest.mark.parametrize("method", ["layernorm", "bitfit", "ia3", "vera", "oft"])
def test_methods_that_leave_matrices_alone_go_on_a_quantized_base(
    tmp_path: Path, method: str
) -> None:
    path = write(tmp_path, f"base: {{model: m, quantize: nf4}}\nadapter: {{method: {method}}}\n")
    assert load_recipe(path).recipe.base.quantize == "nf4"


def test_variants_that_start_from_exact_weights_are_refused(tmp_path: Path) -> None:
    assert EXACT == ("pissa", "olora")
    for variant in EXACT:
        text = f"base: {{model: m, quantize: nf4}}\nadapter: {{variant: {variant}}}\n"
        (problem,) = problems(write(tmp_path, text))
        assert problem.startswith("line 2: adapter.variant: ")
        assert f"`{variant}` starts from the base's exact weights" in problem


def test_loftq_needs_a_base_that_is_quantized_here(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, "base: {model: m}\nadapter: {variant: loftq}\n"))
    assert "it goes with `base.quantize: nf4`" in problem
    text = "base: {model: m, quantize: nf4}\nadapter: {variant: loftq}\n"
    assert load_recipe(write(tmp_path, text)).recipe.adapter.method == "lora"


def test_what_other_tools_call_it_gets_an_answer(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, "base: {model: m, load_in_4bit: true}\n"))
    assert "did you mean `quantize`?" in problem
