"""Merges that mean to be another library's equal what that library made.

`tests/golden/merging/make.py` wrote the tensors, in an environment of its own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peftkit.merge.methods.catalog import find_method
from peftkit.merge.methods.entry_wise import Steps, merge_layers
from peftkit.merge.methods.inputs import Inputs
from peftkit.merge.methods.stream import Layer, Stream
from peftkit.merge.methods.thin import Ranked, drop

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "merging"
FACTS = json.loads((GOLDEN / "merging.json").read_text())
WEIGHTS, SIGNED, KEEPS = FACTS["weights"], FACTS["signed"], FACTS["keeps"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "merging.safetensors")


def merged(method: str, changes: Tensor, weights: list[float], told: Mapping[str, Any]) -> Tensor:
    chosen = find_method(method)
    inputs = Inputs(tuple(weights), ("a", "b", "c"), ("a", "b", "c"))
    chosen.check(inputs)
    stream = Stream.of([Layer.of("layer", list(changes))], inputs, entries=50)
    ((_, whole),) = merge_layers(chosen.function(chosen.read(told)), stream)
    return whole


def assert_equal(one: Tensor, other: Tensor) -> None:
    assert float(other.abs().max()) > 0
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    ("ours", "theirs", "weights", "told"),
    [
        ("ties@mergekit", "ties@mergekit", WEIGHTS, {}),
        ("ties@peft", "ties@peft", SIGNED, {}),
        (
            "ties",
            "ties@peft-by-count",
            SIGNED,
            {"scope": "tensor", "elect": {"by": "count", "weights": "after", "tie": "plus"}},
        ),
        ("magnitude", "magnitude", SIGNED, {}),
        ("breadcrumbs", "breadcrumbs", SIGNED, {"top": FACTS["top"]}),
        ("sce", "sce", [1.0, 1.0, 1.0], {}),
    ],
)
def test_what_keeps_a_share_equals(
    golden: dict[str, Tensor],
    ours: str,
    theirs: str,
    weights: list[float],
    told: dict[str, Any],
    keep: float,
) -> None:
    mine = merged(ours, golden["changes"], weights, {"keep": keep, **told})
    assert_equal(mine, golden[f"{theirs}/{keep}"])


def test_task_arithmetic_equals_mergekit(golden: dict[str, Tensor]) -> None:
    mine = merged("task-arithmetic", golden["changes"], SIGNED, {"lambda": 0.6})
    assert_equal(mine, golden["task-arithmetic/0.6"])


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("method", ["dare", "dare-ties"])
def test_dare_equals_peft_on_the_same_random_numbers(
    golden: dict[str, Tensor], method: str, keep: float
) -> None:
    changes, drawn = golden["changes"], golden["drawn"]
    told = {"elect": {"weights": "after", "tie": "plus"}} if method == "dare-ties" else {}
    chosen = find_method(method)
    steps = chosen.function(chosen.read(told))
    assert isinstance(steps, Steps)
    kept = [drop(change, keep, numbers) for change, numbers in zip(changes, drawn, strict=True)]
    assert_equal(steps.combine(kept, SIGNED), golden[f"{method}/{keep}"])


def test_della_draws_with_the_chances_of_mergekit(golden: dict[str, Tensor]) -> None:
    chances = Ranked(keep=0.5, window=0.3, seed=0).chances(golden["changes"][0])
    assert_equal(chances.float(), golden["della-chances"])


def test_slerp_equals_nuslerp(golden: dict[str, Tensor]) -> None:
    two = golden["changes"][:2].double().flatten(1)
    slerp = find_method("slerp")
    first, second = slerp.function(two @ two.T, (0.7, 0.3), slerp.read({}))
    mine = first * golden["changes"][0] + second * golden["changes"][1]
    assert_equal(mine, golden["nuslerp/0.3"])


def test_karcher_equals_mergekit(golden: dict[str, Tensor]) -> None:
    flat = golden["changes"].double().flatten(1)
    karcher = find_method("karcher")
    found = karcher.function(flat @ flat.T, (5.0, 3.0, 2.0), karcher.read({}))
    mine = torch.tensor(found, dtype=torch.float64) @ flat
    assert_equal(mine.view_as(golden["karcher"]), golden["karcher"])


def test_model_stock_equals_mergekit(golden: dict[str, Tensor]) -> None:
    changes = golden["changes"]
    flat = (changes + 2 * changes.mean(0)).double().flatten(1)
    stock = find_method("model-stock")
    found = stock.function(flat @ flat.T, (1.0, 1.0, 1.0), stock.read({}))
    mine = torch.tensor(found, dtype=torch.float64) @ flat
    assert_equal(mine.view_as(changes[0]).float(), golden["model-stock"])
