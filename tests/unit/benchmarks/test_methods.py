"""The table of methods on the pages is the one that its results give."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The script that writes the table."""
    found = importlib.util.spec_from_file_location("methods_table", BENCHMARKS / "methods/table.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_pages_show_what_was_measured(table: ModuleType) -> None:
    names, runs = table.read_results()
    for name in names:
        path = BENCHMARKS / "methods" / "results" / name
        assert json.loads(path.read_text(encoding="utf-8"))["clean_tree"]
    rows = table.rows_of(runs)
    assert len(rows) >= 8
    for page in (BENCHMARKS / "methods" / "README.md", table.PAGE):
        text = page.read_text(encoding="utf-8")
        for row in rows:
            assert "| " + " | ".join(row) + " |" in text


def test_a_method_is_judged_beside_full_training_of_the_same_seed(table: ModuleType) -> None:
    run = {"set": "a", "accuracy": 0.5, "tokens": 100, "peak_memory_bytes": 2**20}
    runs = [
        run | {"method": "full", "seed": 0, "trainable": 200, "cpu_seconds": 2.0},
        run | {"method": "lora", "seed": 0, "trainable": 10, "cpu_seconds": 1.0},
        run | {"method": "full", "seed": 1, "trainable": 200, "cpu_seconds": 4.0},
        run | {"method": "lora", "seed": 1, "trainable": 10, "cpu_seconds": 1.0},
    ]
    full, lora = table.rows_of(runs)
    assert full[1:] == ["100.00 %", "50.0 (50.0\N{EN DASH}50.0)", "1.00 (1.00\N{EN DASH}1.00)", "1"]
    assert lora[1] == "5.00 %"
    assert lora[3] == "3.00 (2.00\N{EN DASH}4.00)"
