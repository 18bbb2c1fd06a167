"""The reference says what the code says: generated pages, findings, files, formats, exit codes."""

import ast
import json
import re
import runpy
from importlib import import_module

import pytest
from doc_pages import REPOSITORY, Page, pages

from peftkit import errors
from peftkit.adapters.verify import PICKLED
from peftkit.data.formats import COLUMNS, detect_format
from peftkit.data.formats import READERS as FORMATS
from peftkit.data.lines import PACKED
from peftkit.data.readers import READERS
from peftkit.data.rows import Row
from peftkit.diagnose import checks, data_checks, repeats, run_checks
from peftkit.pipeline.signals import HEARD
from peftkit.recipe.lock import FREE
from peftkit.report.record import OWN_FILES, OWN_FOLDERS
from peftkit.train.checkpoint import AVERAGE, MANIFEST, MOMENTS, STATE, WEIGHTS

PAGES = pages()
REFERENCE = REPOSITORY / "docs" / "reference"
SEVERITIES = {"ok", "note", "warning", "problem"}
NOT_WRITTEN = {"stages"}
"""Cleared by `--fresh`, and made by nothing."""


@pytest.mark.parametrize("name", ["cli.md", "recipe.md", "merge.md"])
def test_a_generated_page_is_current(name: str) -> None:
    """If this fails: `python docs/reference/generate.py`."""
    made = runpy.run_path(str(REFERENCE / "generate.py"))["pages"]()
    assert set(made) == {"cli.md", "recipe.md", "merge.md"}
    assert (REFERENCE / name).read_text() == made[name]


def code(cell: str) -> list[str]:
    """What stands between backticks in a cell."""
    return list(Page("cell", cell).spans)


def findings_in_code() -> dict[str, tuple[set[float], set[str]]]:
    """Thresholds and severities of each finding, read off the calls that make them."""
    found: dict[str, tuple[set[float], set[str]]] = {}
    for path in sorted((REPOSITORY / "peftkit" / "diagnose").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding"):
                continue
            name, severity, _, threshold = node.args[:4]
            assert isinstance(name, ast.Constant)
            thresholds, severities = found.setdefault(name.value, (set(), set()))
            named = isinstance(threshold, ast.Name)
            known = vars(import_module(f"peftkit.diagnose.{path.stem}"))
            thresholds.add(known[threshold.id] if named else ast.literal_eval(threshold))
            words = [at.value for at in ast.walk(severity) if isinstance(at, ast.Constant)]
            severities.update(SEVERITIES & {word for word in words if isinstance(word, str)})
    return found


def test_each_finding_is_documented_as_it_is_made() -> None:
    made = findings_in_code()
    assert len(made) >= 9
    rows = PAGES["docs/reference/findings.md"].rows()
    told: dict[str, tuple[set[float], set[str]]] = {}
    for row in rows:  # one that is raised for several reasons has a row for each
        thresholds, severities = told.setdefault(code(row[0])[0], (set(), set()))
        thresholds.add(float(row[2]))
        severities.update(SEVERITIES & {*code(row[3])})
    assert {name: (at, said - {"ok"}) for name, (at, said) in told.items()} == {
        name: (at, said - {"ok"}) for name, (at, said) in made.items()
    }


def test_each_threshold_in_the_code_is_documented() -> None:
    page = PAGES["docs/reference/findings.md"].text
    modules = [vars(module) for module in (checks, data_checks, repeats, run_checks)]
    constants = {name: at for one in modules for name, at in one.items() if isinstance(at, float)}
    assert len(constants) >= 16
    absent = [name for name, value in constants.items() if not re.search(rf"\b{value}\b", page)]
    assert absent == []


def test_each_finding_has_its_advice() -> None:
    rows = PAGES["docs/guides/read-the-report.md"].section("The findings").rows()
    assert {code(row[0])[0] for row in rows} == set(findings_in_code())


def test_each_file_of_a_run_is_documented() -> None:
    rows = PAGES["docs/reference/run-folder.md"].section("The run folder").rows()
    told = {code(row[0])[0] for row in rows}
    folders = {f"{name}/" for name in OWN_FOLDERS if name not in NOT_WRITTEN}
    assert told == {*OWN_FILES, *folders, "adapter/README.md"}


def test_each_file_of_a_checkpoint_is_documented() -> None:
    rows = PAGES["docs/concepts/checkpoints.md"].section("Whole or absent").rows()
    assert {code(row[0])[0] for row in rows} == {MANIFEST, WEIGHTS, MOMENTS, AVERAGE, STATE}


def test_each_exit_code_is_documented() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = [kind for kind in kinds if issubclass(kind, errors.PeftkitError)]
    assert len(ours) >= 7
    codes = {0, *(kind.exit_code for kind in ours), *(128 + number for number in HEARD)}
    rows = PAGES["docs/guides/interrupted-runs.md"].section("Exit codes").rows()
    assert {int(number) for row in rows for number in row[0].split(",")} == codes
    stated = PAGES["docs/reference/cli.md"].section("Exit codes").rows()
    assert {int(number) for row in stated for number in row[0].split(",")} == codes - {0}


def test_the_keys_that_may_change_are_documented() -> None:
    guide = PAGES["docs/guides/interrupted-runs.md"].section("When the recipe has changed")
    assert len(FREE) >= 7
    assert set(guide.spans) >= FREE


def test_the_formats_are_documented_with_rows_that_have_them() -> None:
    guide = PAGES["docs/guides/your-own-data.md"]
    assert len(COLUMNS) >= 4
    for name in COLUMNS:
        rows = [json.loads(b.text) for b in guide.section(f"`{name}`").blocks]
        task = next(task for task, readers in FORMATS.items() if name in readers)
        assert [detect_format(Row(row, "row"), task) for row in rows] == [name]


def test_the_kinds_of_files_are_documented() -> None:
    kinds = {name for row in PAGES["docs/guides/your-own-data.md"].rows() for name in code(row[0])}
    assert {name for name in kinds if name.startswith(".")} == {*READERS, *PACKED}
    refused = PAGES["docs/concepts/safety.md"].section("Adapters").rows()[0]
    assert code(refused[0]) == list(PICKLED)
