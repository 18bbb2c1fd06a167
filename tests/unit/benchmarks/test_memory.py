"""What the page on memory says was measured, and it is flat."""

import json
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "benchmarks" / "data"


def test_the_table_says_what_was_measured() -> None:
    text = (FOLDER / "README.md").read_text()
    named = [path for path in (FOLDER / "results").glob("*.json") if f"results/{path.name}" in text]
    found = [json.loads(path.read_text())["measured"] for path in named]
    results = [each["arms"] for each in found if each.get("question") == "memory"]
    assert sorted(map(len, results)) == [4, 8]
    arms = [arm for result in results for arm in result]
    for arm in arms:
        row = f"| {arm['rows']:,} | {arm['how']} | {arm['rise_mib']} | {arm['cpu_seconds']} |"
        assert row in text.splitlines()
    built = {arm["rows"]: arm["rise_mib"] for arm in max(results, key=len) if arm["how"] == "built"}
    assert (built[1_000_000] - built[10_000]) * 2**20 / 990_000 < 64
    checked = {arm["rows"]: arm["rise_mib"] for arm in arms if arm["how"] == "checked"}
    assert (checked[100_000] - checked[10_000]) * 2**20 / 90_000 < 200
