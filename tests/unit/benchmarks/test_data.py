"""The figures about leaks on the page are those that were measured, and within what was asked."""

import json
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "benchmarks" / "data"


def test_the_page_shows_what_was_measured_of_leaks() -> None:
    (result,) = [
        json.loads(path.read_text())
        for path in sorted((FOLDER / "results").glob("*.json"))
        if "finding" in json.loads(path.read_text())["measured"]
    ]
    assert result["clean_tree"]
    page, measured = (FOLDER / "README.md").read_text(), result["measured"]
    size, finding, known = (measured[name] for name in ("size", "finding", "known"))
    assert size["cpu_seconds"]["leakage"] <= 60
    assert max(size["anonymous_bytes"].values()) <= 2**30
    for name in ("leakage", "duplicates"):
        cells = (size["cpu_seconds"][name], size["anonymous_bytes"][name] / 2**20)
        assert "| {:.1f} | {:.0f} MiB |".format(*cells) in page
    assert finding["recall"] >= 0.95
    assert finding["false_pairs"] <= 1e-4
    for kind, counts in finding["kinds"].items():
        assert f"| {kind} | {' | '.join(map(str, counts.values()))} |" in page
    assert [known[name]["exact"] for name in ("trec", "banking77", "gsm8k")] == [11, 25, 0]
    assert known["sms-spam"]["distinct"] == 5130
    for ratio in measured["ratios"]["datasketch_over_ours"].values():
        assert "{:.2f} times ({:.2f} to {:.2f})".format(ratio["median"], *ratio["range"]) in page
