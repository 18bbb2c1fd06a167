"""What the README says of preparing rows is what was measured, of the same tokens and masks."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks" / "data"


def results() -> dict[str, dict[str, Any]]:
    found = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("results/*.json")}
    return {name: each for name, each in found.items() if "preparation" in each["measured"]}


def test_the_readme_says_what_was_measured() -> None:
    readme = (FOLDER / "README.md").read_text()
    name, result = max(results().items())
    measured = result["measured"]["preparation"]
    assert name in readme
    for figures in (*measured["sets"].values(), measured["all"]):
        ratio = figures["times_as_fast"]
        told = f"{ratio['median']:.1f} ({ratio['low']:.1f}–{ratio['high']:.1f})"
        assert f"| {told} |" in readme


def test_both_prepared_the_same_and_ours_took_a_third() -> None:
    measured = max(results().items())[1]["measured"]["preparation"]
    assert measured["rounds"] >= 5
    assert set(measured["sets"]) == {"chat", "completion", "text"}
    for figures in measured["sets"].values():
        assert figures["rows_with_other_tokens"] == figures["rows_with_another_mask"] == 0
        assert figures["fill"] >= 0.97
    assert measured["all"]["times_as_fast"]["median"] >= 3
