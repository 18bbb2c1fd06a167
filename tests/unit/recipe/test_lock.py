"""Two recipes mean one run exactly when nothing that can change the result differs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.recipe.load import load_recipe
from peftkit.recipe.lock import FREE, difference, digest
from peftkit.recipe.reference import keys
from peftkit.recipe.schema import Recipe

BASE = {"model": "builtin:tiny"}
CHANGES: dict[str, Any] = {
    "name": "other",
    "publish.license": "mit",
    "train.save_every": 7,
    "train.keep": 1,
    "train.threads": 2,
    "train.batch.micro_rows": 2,
    "evaluate.samples": 1,
    "seed": 1,
    "base.model": "org/model",
    "adapter.rank": 3,
    "adapter.layers": (1, 2),
    "adapter.targets": ("q_proj",),
    "data.train": ({"source": "other.txt"},),
    "data.packing": False,
    "data.check_labels": "off",
    "train.steps": 400,
    "train.learning_rate": 1e-3,
    "train.batch.rows": 2,
    "evaluate.every": 7,
    "evaluate.rows": 7,
}


def recipe(*changes: str) -> Recipe:
    values: dict[str, Any] = {
        "name": "a",
        "base": BASE,
        "data": {"train": ({"source": "rows.txt"},)},
        "train": {"steps": 300},
    }
    for dotted in changes:
        *path, key = dotted.split(".")
        inside = values
        for part in path:
            inside[part] = inside = {**inside.get(part, {})}
        inside[key] = CHANGES[dotted]
    return Recipe.model_validate(values)


def resolved(one: Recipe) -> dict[str, Any]:
    return one.model_dump(mode="json")


def test_a_difference_reads_as_a_change() -> None:
    changed = recipe("train.steps", "adapter.layers", "data.train")
    assert difference(resolved(recipe()), resolved(changed)) == [
        "adapter.layers: all -> (not there)",
        "data.train.0.source: rows.txt -> other.txt",
        "train.steps: 300 -> 400",
        "adapter.layers.0: (not there) -> 1",
        "adapter.layers.1: (not there) -> 2",
    ]


@pytest.mark.parametrize("key", CHANGES)
def test_each_key_counts_or_is_free(key: str) -> None:
    free = any(f"{key}.".startswith(f"{one}.") for one in FREE)
    assert (digest(recipe(key)) == digest(recipe())) is free
    assert (difference(resolved(recipe()), resolved(recipe(key))) == []) is free


def test_steps_between_saves_count_where_saves_are_averaged(tmp_path: Path) -> None:
    def averaged(average: str, every: int) -> Recipe:
        path = tmp_path / "recipe.yaml"
        train = f"train: {{average: {average}, save_every: {every}}}\n"
        path.write_text("base: {model: m}\ndata: {train: rows.txt}\n" + train)
        return load_recipe(path).recipe

    one, other = averaged("{last: 3}", 10), averaged("{last: 3}", 20)
    assert digest(one) != digest(other)
    assert difference(resolved(one), resolved(other)) == ["train.save_every: 10 -> 20"]
    assert digest(averaged("{ema: 0.9}", 10)) == digest(averaged("{ema: 0.9}", 20))
    keys = [
        line.partition(":")[0] for line in difference(resolved(averaged("none", 10)), resolved(one))
    ]
    assert keys
    assert all(key.startswith("train.average") for key in keys)


def test_each_free_key_is_one_of_the_recipe() -> None:
    assert all(keys(free) for free in FREE)
    assert all(any(key.startswith(free) for key in CHANGES) for free in FREE)


@given(st.sets(st.sampled_from(list(CHANGES))), st.sets(st.sampled_from(list(CHANGES))))
def test_digest_and_difference_agree(first: set[str], second: set[str]) -> None:
    one, other = recipe(*sorted(first)), recipe(*sorted(second))
    same = not difference(resolved(one), resolved(other))
    assert (digest(one) == digest(other)) is same


def test_what_a_run_folder_holds_is_no_change() -> None:
    held = json.loads(json.dumps(resolved(recipe())))
    assert difference(held, resolved(recipe())) == []


def test_a_run_may_go_on_in_another_place(tmp_path: Path) -> None:
    found = []
    for place in ("here", "there/and/there"):
        file = tmp_path / place / "a.yaml"
        file.parent.mkdir(parents=True)
        file.write_text("base: {model: ./model}\ndata: {train: [rows/a.txt, {source: /b/b.txt}]}\n")
        found.append(load_recipe(file).recipe)
    assert found[0] != found[1]
    assert digest(found[0]) == digest(found[1])
    assert difference(resolved(found[0]), resolved(found[1])) == []
