"""Every recipe that ships is valid, says how to run it, and promises only what was measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from peftkit.recipe import catalog
from peftkit.recipe.load import load_any
from peftkit.recipe.merge_schema import MergeRecipe

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = [one.path for one in catalog.shipped()]
MERGES = sorted((REPOSITORY / "recipes" / "merging").glob("*.yaml"))
HEADER = ("Run", "Needs", "Expect")


def newest_result(question: str) -> dict[str, Any]:
    results = sorted((REPOSITORY / "benchmarks" / question / "results").glob("*.json"))
    assert results, f"benchmarks/{question} has no result"
    found: dict[str, Any] = json.loads(results[-1].read_text())["measured"]
    return found


def header(path: Path) -> dict[str, str]:
    lines = re.findall(r"(?m)^# (Run|Needs|Expect): +(.+)$", path.read_text())
    return dict(lines)


def test_the_recipes_are_where_they_should_be() -> None:
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_is_valid_and_says_how_to_run_it(path: Path) -> None:
    merges = isinstance(load_any(path).recipe, MergeRecipe)
    one = catalog.find(path.relative_to(REPOSITORY / "recipes").with_suffix("").as_posix())
    assert sorted(header(path)) == sorted(HEADER)
    command = "merge" if merges else "finetune"
    assert one.commands[-1] == f"peftkit {command} {path.relative_to(REPOSITORY)}"
    assert one.expect == "not measured" or "benchmarks/" in one.expect


@pytest.mark.parametrize("path", MERGES, ids=lambda path: path.stem)
def test_a_merge_says_where_its_adapters_come_from(path: Path) -> None:
    loaded = load_any(path).recipe
    assert isinstance(loaded, MergeRecipe)
    one = catalog.find(f"merging/{path.stem}")
    names = [load_any(catalog.find(name).path).recipe.name for name in one.needed]
    outs = [c.partition(" --out ")[2] for c in one.commands[:-1]]
    made = [out or f"runs/{name}" for out, name in zip(outs, names * len(outs), strict=False)]
    assert sorted(loaded.adapters.values()) == sorted(str(REPOSITORY / out) for out in made)


@pytest.mark.parametrize("path", MERGES, ids=lambda path: path.stem)
def test_a_merge_promises_what_was_measured(path: Path) -> None:
    result = max((REPOSITORY / "benchmarks/task_vectors/results-of-recipes").glob("*.json"))
    facts = json.loads(result.read_text())
    assert facts["clean_tree"]
    sets = facts["measured"]["recipes"][f"merging/{path.stem}"]["sets"].values()
    known = {f"{loss:.2f}" for each in sets for loss in each["loss"].values()}
    known |= {f"{100 * each['retained']:.0f}" for each in sets if each["retained"] is not None}
    promised = re.findall(
        r"(?<![\w.])\d+(?:\.\d+)?(?!\w)", catalog.find(f"merging/{path.stem}").expect
    )
    assert promised
    assert set(promised) <= known


def test_the_quickstart_promises_what_was_measured() -> None:
    summary = newest_result("quickstart")["summary"]
    expect = header(REPOSITORY / "recipes/quickstart.yaml")["Expect"]
    promised = [float(number) for number in re.findall(r"(\d+\.\d)(?: %|\]| …| over)", expect)]
    adapted = summary["adapted_exact_match"]
    measured = [summary["base_exact_match"]["median"], adapted["median"]]
    measured += [adapted["low"], adapted["high"]]
    assert promised == [round(100 * figure, 1) for figure in measured]
    assert summary["base_exact_match"]["high"] <= 0.10
    assert adapted["low"] >= 0.80


def test_the_embedded_base_promises_what_was_measured() -> None:
    measured = newest_result("builtin_base")
    random, trained = measured["random"]["loss"], measured["trained"]["loss"]
    expect = header(REPOSITORY / "recipes/pretrain/builtin-tiny.yaml")["Expect"]
    card = (REPOSITORY / "peftkit/base/tiny/README.md").read_text()
    for text in (expect, card):
        assert f"{random:.3f}" in text
        assert f"{trained:.3f}" in text
    assert f"{measured['trained']['loss_per_byte']:.3f} per byte" in card
    assert trained < random / 2


def test_the_readme_shows_the_output_that_was_measured() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    first = newest_result("quickstart")["runs"][0]
    assert first["verdict"] in readme
