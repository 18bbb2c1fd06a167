"""What is told of forgetting is what was measured, and the comparisons are what they say."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "benchmarks" / "forgetting"
RECIPES = ("replay", "ewc", "kl")


@pytest.fixture
def modules() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's own modules, which stand beside each other."""
    sys.path.insert(0, str(FOLDER))
    names = ("judge", "table")
    yield {name: import_module(name) for name in names}
    sys.path.remove(str(FOLDER))
    for name in names:
        del sys.modules[name]


def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(max((FOLDER / "results").glob("*.json")).read_text())
    assert found["clean_tree"]
    return dict(found["measured"])


def test_the_pages_show_what_was_measured(modules: dict[str, ModuleType]) -> None:
    made = modules["table"].render()
    assert made.count("| `") >= 8
    for page in (FOLDER / "README.md", REPOSITORY / "docs" / "concepts" / "forgetting.md"):
        assert made in page.read_text(encoding="utf-8")


def test_the_summary_follows_from_the_runs(modules: dict[str, ModuleType]) -> None:
    found = measured()
    again = json.loads(json.dumps(modules["judge"].summarize(found["runs"])))
    assert again == found["summary"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_promises_what_was_measured(name: str) -> None:
    arms = measured()["summary"]["arms"]
    text = (REPOSITORY / "recipes" / "forgetting" / f"{name}.yaml").read_text()
    expect = next(line for line in text.splitlines() if line.startswith("# Expect:"))
    if f"recipe {name}" not in arms:
        assert expect.endswith(("not measured", "one run, benchmarks/LOG.md"))
        return
    own, plain = arms[f"recipe {name}"], arms["recipe plain"]
    assert expect == (
        f"# Expect: the loss of stories rises by {own['forgotten']['mean']:.2f} nats and not "
        f"by {plain['forgotten']['mean']:.2f}; exact match on held-out rows "
        f"{100 * own['accuracy']['mean']:.1f} % instead of "
        f"{100 * plain['accuracy']['mean']:.1f} %, benchmarks/forgetting"
    )


def run(arm: str, seed: int, target: float, general: float) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "target": target, "general": general, "base_general": 1.0}


def test_replay_is_judged_by_what_it_removes_and_costs(modules: dict[str, ModuleType]) -> None:
    runs = [run("full", 0, 2.0, 3.0), run("replay 5 %", 0, 2.1, 2.0)]
    found = modules["judge"].compare_replay(runs)
    assert found == {"removed": [0.5], "target_cost": [pytest.approx(0.1)]}


def test_curves_are_compared_where_both_are(modules: dict[str, ModuleType]) -> None:
    """One line half a nat below another, and reaching further: the difference is half a nat."""
    ours = [run(f"ewc {at}", 1, 2.0 + at, 2.5 - at) for at in (0.0, 0.5, 1.5)]
    theirs = [run(f"l2sp {at}", 1, 2.2 + at, 2.8 - at) for at in (0.0, 0.4)]
    (found,) = modules["judge"].compare_curves([*ours, *theirs])
    assert found["general_at_one_target"] == pytest.approx(-0.5)
    assert found["target_at_one_general"] == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="do not meet"):
        modules["judge"].compare_curves([*ours[:1], run("ewc 9", 1, 2.1, 2.4), *theirs])
