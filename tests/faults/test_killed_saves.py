"""Killed after any change to any file, a save leaves the old or the new, and never a dead end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).with_name("kill_saves.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, str(PROGRAM), str(tmp_path_factory.mktemp("saves"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    if why := said.get("unsupported"):
        pytest.skip(why)
    return said


@pytest.mark.parametrize(
    ("kind", "least"), [("checkpoint", 30), ("adapter", 15), ("json", 4), ("line", 2), ("fresh", 9)]
)
def test_no_kill_leaves_a_dead_end(
    found: dict[str, Any], kind: str, least: int, record_property: Any
) -> None:
    record_property("killed after each change of a save", {kind: found[kind]["killed"]})
    assert found[kind]["wrong"] == []
    assert found[kind]["killed"] >= least


def test_older_checkpoints_go_only_after_the_new_one_has_reached_the_disk(
    found: dict[str, Any],
) -> None:
    changes = found["checkpoint"]["changes"]
    names = [change[0] for change in changes]
    renamed = max(i for i, change in enumerate(changes) if change[-1] == "step-000030")
    removed = names.index("unlinkat")
    assert any(name == "fsync" for name in names[renamed:removed])
    written = [change[1] for change in changes[:renamed] if change[0] == "write"]
    synced = [change[1] for change in changes[:renamed] if change[0] == "fsync"]
    assert len(written) == 4
    assert "MANIFEST.json" in written[-1]
    assert {name.rpartition("/")[2] for name in synced} > {
        *("weights.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"),
    }
