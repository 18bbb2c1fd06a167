"""The guides, followed: the first run from its first line to its last, then the Python ones."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from doc_pages import Page, pages

pytestmark = pytest.mark.slow
PAGES = pages()
OPTIONAL = {
    *("changes", "validation_without_leaks", "test_without_leaks"),
    *("general", "penalty"),
    *("skipped", "remember"),
    *("stages", "total", "elsewhere", "final", "losses"),
}
"""Keys that are there only after something unusual: leaks, regularizers, spikes, stages."""
SELDOM = {"finder.json", "unfreezing.json"}
"""Files that only some recipes leave."""
NESTED = {
    "data.json": ("train", "validation", "leakage"),
    "plan.json": ("memory_bytes",),
    "lock.json": ("base", "machine", "choices"),
    "metrics.json": ("validation", "test", "baselines", "speed", "verdict"),
}


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every `peftkit` line of the guide was run, in order."""
    folder = tmp_path_factory.mktemp("first-run")
    lines = [w for _, w in PAGES["docs/guides/first-run.md"].commands() if w[0] == "peftkit"]
    assert len(lines) >= 9
    for words in lines:
        done = run(["-m", *words], folder)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        assert done.stdout
    return folder


def test_the_first_run_leaves_what_the_guide_says(followed: Path) -> None:
    for name in ("quickstart.yaml", "data/home/train.jsonl", "comparison.html"):
        assert (followed / name).stat().st_size > 0
    assert sorted(path.name for path in (followed / "runs").iterdir()) == [
        "one-epoch",
        "quickstart",
    ]
    assert "<html" in (followed / "runs/quickstart/report.html").read_text()


def keys_of(path: Path) -> set[str]:
    """The keys at the top of a JSON file, or of any of its entries or lines."""
    text = path.read_text()
    values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else None
    value: Any = json.loads(text) if values is None else values
    return set().union(*value) if isinstance(value, list) else set(value)


def test_the_files_of_a_run_have_the_documented_keys(followed: Path) -> None:
    page = PAGES["docs/reference/run-folder.md"]
    names = [name.strip("`") for name in page.headings if name.endswith((".json`", ".jsonl`"))]
    assert len(names) >= 8
    assert set(names) >= SELDOM
    for name in (name for name in names if name not in SELDOM):
        path, section = followed / "runs/quickstart" / name, page.section(f"`{name}`")
        told = {key for row in section.rows() for key in Page("cell", row[0]).spans}
        assert (name, told - OPTIONAL) == (name, keys_of(path) - OPTIONAL)
        assert (name, keys_of(path) - told) == (name, set())
        for key in NESTED.get(name, ()):
            inside = json.loads(path.read_text())[key]
            assert (name, key, set(inside) - set(section.spans)) == (name, key, set())


def test_the_lines_of_python_run(followed: Path) -> None:
    blocks = [
        block
        for name in ("docs/guides/python.md", "docs/guides/use-and-publish.md")
        for block in PAGES[name].blocks
        if block.language == "python"
    ]
    assert len(blocks) >= 4
    for block in blocks:
        done = run(["-c", block.text], followed)
        assert done.returncode == 0, f"{block.place}\n{done.stdout}{done.stderr}"
