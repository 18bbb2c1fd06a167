"""What a recipe may say of its end, and what is refused before anything is loaded."""

from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe.ending import chooses, keeps_best, watches_general_text
from peftkit.recipe.load import load_recipe
from peftkit.recipe.schema import Recipe

BASE = "base: {model: m}\ndata: {train: rows.jsonl}\n"
THAWS = "train:\n  unfreeze: {every: plateau}\n"
GENERAL = "evaluate: {remember: {source: general.txt, format: text}, every: 10}\n"


def load(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(BASE + text)
    return load_recipe(path).recipe


@pytest.mark.parametrize(
    ("text", "best", "deciding", "general"),
    [
        ("", False, False, False),
        ("train: {keep_best: on}\n", True, True, False),
        ("train: {early_stopping: {patience: 3}}\n", True, True, False),
        ("train: {early_stopping: {patience: 3}, keep_best: off}\n", False, True, False),
        ("train: {early_stopping: {patience: 3}, average: {ema: 0.9}}\n", False, True, False),
        ("train: {early_stopping: {forgetting: 0.2}}\n" + GENERAL, True, True, True),
        ("train: {average: {last: 3}}\n", False, False, False),
        ("train: {early_stopping: none, average: none}\n", False, False, False),
        (THAWS + "  keep_best: on\n", True, True, False),
        ("train: {unfreeze: {every: epoch}, average: {last: 3}}\n", False, False, False),
        ("train: {unfreeze: {every: epoch}, early_stopping: {patience: 3}}\n", True, True, False),
    ],
)
def test_what_the_end_depends_on(
    tmp_path: Path, text: str, *, best: bool, deciding: bool, general: bool
) -> None:
    recipe = load(tmp_path, text)
    assert keeps_best(recipe) is best
    assert chooses(recipe) is deciding
    assert watches_general_text(recipe) is general
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {early_stopping: {forgetting: 0.2}}\n", "name some under `evaluate.remember`"),
        ("train: {early_stopping: {}}\n", "says what to stop at"),
        ("train: {early_stopping: {patience: 0}}\n", "train.early_stopping.patience"),
        ("train: {early_stopping: {patienec: 3}}\n", "did you mean `patience`?"),
        ("train: {early_stopping: soon}\n", "`none`, or a section such as `{patience: 3"),
        (
            "train: {early_stopping: {patience: 3}, steps: 50}\n",
            "evaluations every 100 steps come too late to stop a run of 50",
        ),
        ("train: {average: {last: 3, ema: 0.9}}\n", "either `last` or `ema` says what to average"),
        ("train: {average: {ema: 1.5}}\n", "train.average.ema"),
        ("train: {average: {ema: 0.9}, keep_best: on}\n", "cannot both be kept"),
        ("train: {on_spike: panic}\n", "train.on_spike"),
        (THAWS + "  early_stopping: {patience: 3}\n", "its evaluations would end the run before"),
        (THAWS + "  early_stopping: {forgetting: 0.2}\n" + GENERAL, "would end the run before"),
        (THAWS + "  average: {last: 3}\n", "its weights would stay in the mean"),
        (THAWS + "  average: {ema: 0.9}\n", "its weights would stay in the mean"),
    ],
)
def test_what_cannot_end_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        load(tmp_path, text)
    assert said in "\n".join(refusal.value.problems)
    assert refusal.value.hint
