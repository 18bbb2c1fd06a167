"""Recipes with stages: what each becomes, what keeps one from following, and where it is told."""

from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe.load import load_recipe
from peftkit.recipe.lock import difference, digest
from peftkit.recipe.schema import Recipe

TOP = """\
base: {model: builtin:tiny}
adapter: {rank: 8}
data: {train: a.jsonl, max_length: 64}
train: {steps: 10, learning_rate: 1e-3}
stages:
"""


def write(folder: Path, stages: str, top: str = TOP) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(top + stages)
    return path


def load(folder: Path, stages: str, top: str = TOP, *overrides: str) -> Recipe:
    return load_recipe(write(folder, stages, top), overrides).recipe


def problems(folder: Path, stages: str, top: str = TOP) -> tuple[str, ...]:
    with pytest.raises(RecipeError, match="is not a valid recipe") as refusal:
        load(folder, stages, top)
    return tuple(refusal.value.problems)


def test_a_stage_is_the_top_with_its_own_over_it(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        """\
  - name: domain
    data: {train: b.txt}
    train: {learning_rate: 2e-3}
  - name: task
    as: stacked
    adapter: {dropout: 0.1}
""",
    )
    domain, task = recipe.stages
    assert (domain.start_from, domain.how) == ("base", "auto")
    assert (task.start_from, task.how) == ("previous", "stacked")
    assert domain.data.train[0].source == str(tmp_path / "b.txt")
    assert task.data.train[0].source == str(tmp_path / "a.jsonl")
    assert domain.data.max_length == task.data.max_length == 64
    assert (domain.train.learning_rate, task.train.learning_rate) == (2e-3, 1e-3)
    assert domain.train.steps == task.train.steps == 10
    assert (domain.adapter.model_dump()["rank"], task.adapter.model_dump()["dropout"]) == (8, 0.1)
    for section in ("base", "adapter", "data", "train", "evaluate"):
        assert getattr(recipe, section) == getattr(task, section), "the whole is its last stage"


def test_one_that_starts_from_another_goes_on_as_it(tmp_path: Path) -> None:
    recipe = load(tmp_path, "  - {name: a}\n  - {name: b}\n  - {name: c, start_from: a}\n")
    assert [stage.start_from for stage in recipe.stages] == ["base", "previous", "a"]
    assert [stage.how for stage in recipe.stages] == ["auto", "continued", "continued"]


def test_what_is_resolved_reads_as_the_same_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, "  - {name: a}\n  - {name: b, as: folded, adapter: {method: ia3}}\n")
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again == recipe
    assert digest(again) == digest(recipe)


def test_a_stage_alone_is_a_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, "  - {name: a}\n  - {name: b, train: {steps: 5}}\n")
    alone = recipe.stage(1)
    assert (alone.name, alone.train.steps, alone.stages) == ("recipe-b", 5, ())
    assert Recipe.model_validate_json(alone.model_dump_json()) == alone


def test_a_stage_is_changed_by_number_or_name(tmp_path: Path) -> None:
    stages = "  - {name: a}\n  - {name: b, data: {train: x/b.jsonl}}\n"
    recipe = load(tmp_path, stages, TOP, "stages.0.train.steps=5", "stages.b.data.train=c.jsonl")
    assert [stage.train.steps for stage in recipe.stages] == [5, 10]
    assert recipe.stages[1].data.train[0].source == str(Path("c.jsonl").absolute())
    everywhere = load(tmp_path, stages, TOP, "train.steps=7")
    assert [stage.train.steps for stage in everywhere.stages] == [7, 7]
    with pytest.raises(RecipeError, match="leads nowhere"):
        load(tmp_path, stages, TOP, "stages.c.train.steps=5")


def test_stages_need_nothing_at_the_top(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "stages:\n  - {name: a, base: {model: builtin:tiny}, data: {train: a.txt}}\n",
        "seed: 1\n",
    )
    assert recipe.base.model == "builtin:tiny"


def test_qlora_is_spelled_out_in_a_stage(tmp_path: Path) -> None:
    recipe = load(tmp_path, "  - {name: a, adapter: {method: qlora}}\n")
    assert recipe.stages[0].base.quantize == recipe.base.quantize == "nf4"
    assert recipe.stages[0].adapter.method == "lora"


def test_a_change_is_told_by_the_name_of_its_stage(tmp_path: Path) -> None:
    stages = "  - {name: a}\n  - {name: b}\n"
    old = load(tmp_path, stages).model_dump(mode="json")
    new = load(tmp_path, stages, TOP, "stages.b.train.steps=5", "stages.a.train.keep=9")
    assert difference(old, new.model_dump(mode="json")) == ["stages.b.train.steps: 10 -> 5"]
    renamed = load(tmp_path, "  - {name: a}\n  - {name: c}\n").model_dump(mode="json")
    assert difference(old, renamed)[0] == "stages: [a, b] -> [a, c]"


def test_a_mistake_is_told_once_and_where_it_was_written(tmp_path: Path) -> None:
    top = TOP.replace("steps: 10", "stepz: 10")
    found = problems(tmp_path, "  - {name: a}\n  - {name: b, train: {wramup: 0.1}}\n", top)
    assert found == (
        "line 4: train.stepz: unknown key; did you mean `steps`?",
        "line 7: stages.1.train.wramup: unknown key; did you mean `warmup`?",
    )


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ("{name: a}, {name: a}", "stages.1.name: two stages are called `a`"),
        ("{name: Task}", "stages.0.name: expected up to 48 lower-case letters"),
        ("{name: base}", "stages.0.name: `base` already means something in `start_from`"),
        (
            "{name: a, start_from: previous}",
            "stages.0.start_from: the first stage has no `previous`",
        ),
        (
            "{name: domain}, {name: b, start_from: domian}",
            "stages.1.start_from: there is no stage `domian`; did you mean `domain`?",
        ),
        (
            "{name: a}, {name: b, start_from: c}, {name: c}",
            "stages.1.start_from: the stage `c` is not an earlier one",
        ),
        ("{name: a, as: folded}", "stages.0.as: `folded` says what becomes of an earlier stage"),
        (
            "{name: a}, {name: b, as: stackt}",
            "stages.1.as: `stackt` is not known; did you mean `st",
        ),
        (
            "{name: a}, {name: b, adapter: {rank: 4}}",
            "stages.1.adapter.rank: `a` goes on with 8, and this says 4; `as: stacked` or `as: fol",
        ),
        (
            "{name: a}, {name: b, adapter: {method: ia3}}",
            "only an adapter of one kind goes on training: `a` trains lora, and this ia3",
        ),
        (
            "{name: a}, {name: b, as: stacked, adapter: {method: ia3}}",
            "ia3 cannot act above lora: only two of a kind can",
        ),
        (
            "{name: a, adapter: {method: prompt}}, {name: b, as: folded}",
            "no weight of the base can do what prompt does",
        ),
        (
            "{name: a, adapter: {variant: pissa}}, {name: b, adapter: {variant: pissa}}",
            "`pissa` is saved as plain LoRA of twice its rank",
        ),
        (
            "{name: a, adapter: {method: p-tuning}}, {name: b, adapter: {method: p-tuning}}",
            "what computes the adapter of `a` is not saved",
        ),
        (
            "{name: a, base: {task: classification}}, {name: b}",
            "stages.1.start_from: `a` leaves a head for classification, which causal-lm has no",
        ),
        (
            "{name: a, base: {task: regression}}, {name: b, as: stacked, base: {task: regression}}",
            "`a` leaves a head, and of two only one can act",
        ),
        (
            "{name: a}, {name: b, base: {dtype: bfloat16}}",
            "stages.1.base.dtype: the stages share one base, and the first says auto",
        ),
        (
            "{name: a}, {name: b, adapter: {under: runs/x}}",
            "stages.1.adapter.under: what it stands on is the stage that it starts from",
        ),
        (
            "{name: a, base: {quantize: nf4}}, {name: b, as: folded, base: {quantize: nf4}}",
            "weights in nf4 cannot take an adapter without being rounded once more",
        ),
    ],
)
def test_what_cannot_follow_is_told_before_anything_is_loaded(
    tmp_path: Path, stages: str, problem: str
) -> None:
    top = TOP.replace("adapter: {rank: 8}\n", "") if "method" in stages else TOP
    found = problems(tmp_path, f"  [{stages}]\n", top)
    line = top.count("\n") + 1
    assert any(told.startswith(f"line {line}: ") and problem in told for told in found), found


def test_every_stage_in_its_own_way_is_told(tmp_path: Path) -> None:
    found = problems(tmp_path, "  - {name: a}\n  - {name: a}\n  - {name: c, start_from: d}\n")
    assert [told.partition(": ")[0] for told in found] == ["line 7", "line 8"]
