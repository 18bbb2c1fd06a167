"""A run folder is read whole; what is absent or damaged is named, and never fails the report."""

import json
from pathlib import Path

import pytest
import run_folders as folders

from peftkit.report import tables
from peftkit.report.reading import _FILES, read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return folders.write_run(tmp_path / "intents")


def test_a_whole_folder_is_read(run: Path) -> None:
    facts = read_run(run)
    assert facts.missing == ()
    assert (facts.name, facts.split, facts.helped) == ("intents", "test", "yes")
    assert (len(facts.steps), len(facts.evaluations), len(facts.samples)) == (300, 7, 12)
    assert facts.plan is not None
    assert facts.plan.memory_training == 640_000_000
    assert facts.baselines["probe"]["test"].values["loss"] == 1.251
    assert [change.metric for change in facts.changes["test"]] == ["loss", "exact_match"]
    assert facts.adapter_bytes == 116_000
    assert [split.name for split in facts.splits] == ["train", "validation", "test"]


def test_leaks_that_were_not_looked_for_are_not_denied(run: Path) -> None:
    data = json.loads((run / "data.json").read_text())
    data["leakage"] = {"exact": None, "near": None, "pairs": [], "policy": "off", "sets": {}}
    folders.write(run / "data.json", data)
    facts = read_run(run)
    assert facts.leakage is None
    assert tables.leakage_sentence(facts).endswith("was not checked.")


def test_findings_come_worst_first(run: Path) -> None:
    severities = [finding.severity for finding in read_run(run).findings]
    assert severities == ["warning", "note", "note", "ok", "ok"]


def test_an_empty_folder_names_every_file(tmp_path: Path) -> None:
    facts = read_run(tmp_path)
    assert [item.file for item in facts.missing] == list(_FILES)
    assert facts.name == tmp_path.name


@pytest.mark.parametrize("file", [name for name in _FILES if name != "recipe.yaml"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "3", '"words"', "[" * 100_000, "\ud800"]
)
def test_no_content_fails_the_report(run: Path, file: str, content: str) -> None:
    (run / file).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert read_run(run).name == "intents" or file == "recipe.resolved.json"


def test_a_damaged_file_is_named(run: Path) -> None:
    (run / "metrics.json").write_text('{"validation": ')
    (missing,) = read_run(run).missing
    assert (missing.file, missing.problem) == ("metrics.json", "is not valid JSON")


def test_a_line_cut_short_is_counted_and_left_out(run: Path) -> None:
    with (run / "steps.jsonl").open("a") as file:
        file.write('{"step": 301, "lo')
    facts = read_run(run)
    assert len(facts.steps) == 300
    assert [item.problem for item in facts.missing] == ["has 1 unreadable line"]


def test_figures_that_are_none_are_gaps(run: Path) -> None:
    lines = [
        '{"step": 1, "loss": NaN, "grad_norm": Infinity}',
        '{"step": 2, "loss": 1e999, "grad_norm": true}',
        '{"step": 3, "loss": "low", "learning_rate": -Infinity}',
        '{"step": 4, "loss": 2.0}',
        '{"step": 5, "loss": 1' + "0" * 400 + "}",
        '{"step": 6, "loss": -1e200}',
        '{"step": -1, "loss": 2.0}',
        '{"loss": 2.0}',
    ]
    (run / "steps.jsonl").write_text("\n".join(lines))
    steps = read_run(run).steps
    losses = {step.step: step.loss for step in steps}
    assert losses == {1: None, 2: None, 3: None, 4: 2.0, 5: None, 6: None}
    assert {step.grad_norm for step in steps} == {None}


def test_a_step_taken_again_counts_once(run: Path) -> None:
    lines = [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    folders.write_lines(run / "steps.jsonl", lines)
    assert [(step.step, step.loss) for step in read_run(run).steps] == [(1, 3.0), (2, 2.0)]


def test_text_is_made_printable(run: Path) -> None:
    (run / "samples.json").write_text(
        json.dumps([{"where": "a", "prompt": "\x00\ud800\r\n\x1b[1m"}])
    )
    (sample,) = read_run(run).samples
    assert sample.prompt == "\u2400\ufffd\n\u241b[1m"
    sample.prompt.encode()


def test_without_a_test_set_validation_judges(run: Path) -> None:
    metrics = folders.metrics()
    metrics["test"] = None
    del metrics["difference"]["test"]
    folders.write(run / "metrics.json", metrics)
    assert read_run(run).split == "validation"
