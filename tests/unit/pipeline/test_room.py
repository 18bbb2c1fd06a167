"""A row and what an adapter puts before it must fit the base together."""

import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.errors import RecipeError
from peftkit.pipeline.plan import make_plan
from peftkit.pipeline.setup import set_up
from peftkit.recipe.load import load_recipe


def plan(folder: Path, base: Path, adapter: str) -> Any:
    rows = [{"text": "hello there " * count} for count in (2, 3, 4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "recipe.yaml"
    path.write_text(
        f"base: {{model: {base}}}\n"
        f"adapter: {adapter}\n"
        "data:\n"
        "  train: {source: rows.jsonl, format: text}\n"
        "  validation: {fraction: 0.4, by: random}\n"
        "  leakage: off\n"
    )
    recipe = load_recipe(path).recipe
    return make_plan(recipe, set_up(recipe))


@pytest.mark.parametrize("method", ["prefix", "prompt", "p-tuning"])
def test_what_has_no_room_is_refused(method: str, tmp_path: Path, tiny_llama: Path) -> None:
    window = json.loads((tiny_llama / "config.json").read_text())["max_position_embeddings"]
    with pytest.raises(RecipeError, match=f"the {window} places that the base was made for"):
        plan(tmp_path, tiny_llama, f"{{method: {method}, tokens: {window - 10}}}")
    with pytest.raises(RecipeError) as refusal:
        plan(tmp_path, tiny_llama, f"{{method: {method}, tokens: {window - 10}}}")
    assert "data.max_length=10 " in (refusal.value.hint or "")
    assert plan(tmp_path, tiny_llama, f"{{method: {method}, tokens: 4}}").trainable > 0
