"""A shipped merge, run as its header says: copied, trained and merged, command by command."""

import json
from pathlib import Path

import pytest

from peftkit.cli.main import main
from peftkit.pipeline.evaluate import evaluate
from peftkit.recipe import catalog

pytestmark = pytest.mark.slow

DATA = "recipes/data/habit"


def test_a_habit_is_negated_as_the_header_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copied = catalog.copy("merging/negate-a-habit", Path())
    for command in catalog.find("merging/negate-a-habit").commands_for(copied):
        program, *words = command.split()
        assert program == "peftkit"
        assert main(words) == 0
    merged = Path("merged/negate-a-habit")
    (term,) = json.loads((merged / "merge.json").read_text())["terms"]
    assert -1.5 <= term["weight"] < 0
    rows = {name: f"{DATA}/{name}.test.jsonl" for name in ("shouts", "calm")}
    before, after = (evaluate(n, data=list(rows.values())) for n in ("builtin:tiny", str(merged)))
    rise = {n: after[path]["loss"] - before[path]["loss"] for n, path in rows.items()}
    assert rise["shouts"] > 0.1
    assert rise["shouts"] > 5 * abs(rise["calm"])
